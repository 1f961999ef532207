"""Other model servers beside ours: the same file, the same client, in turns on the same machine."""

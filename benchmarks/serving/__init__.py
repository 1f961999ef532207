"""What the server adds to a bare run of its models: `python -m benchmarks.serving`."""

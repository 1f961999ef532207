"""Other libraries' explanations beside ours, on the same pictures in the same process; an environment of their own."""

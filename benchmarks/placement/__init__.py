"""On which execution provider each node of an explained graph is placed, found out without a GPU."""

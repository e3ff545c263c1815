"""Floor 2: the paper, one verb per file."""

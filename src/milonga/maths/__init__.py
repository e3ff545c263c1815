"""Floor 1: pure functions: noise, sampling, losses, metrics, statistics. No files, no network."""

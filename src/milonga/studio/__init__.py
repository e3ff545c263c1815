"""One page to generate, compare, keep or discard clips."""

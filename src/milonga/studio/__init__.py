"""The studio: one page to generate, compare, keep or discard clips."""

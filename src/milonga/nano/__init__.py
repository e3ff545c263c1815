"""The small world: synthesised, captioned sound events with known ground truth, and small weights."""

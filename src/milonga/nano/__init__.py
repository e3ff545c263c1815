"""Nano: a small world of synthesised, captioned sound events with known ground truth, and small weights."""

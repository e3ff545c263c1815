"""Captions, recordings, Audio-alpaca's layout, and examples for training."""

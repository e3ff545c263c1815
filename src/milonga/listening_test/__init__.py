"""The listening test: people rate clips on two scales, or compare them blind."""

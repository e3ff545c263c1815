"""The trainer, preference losses on any model, checkpoints, resuming."""

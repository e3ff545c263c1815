"""Text-to-audio models: pipelines, schedulers, loading, LoRA."""

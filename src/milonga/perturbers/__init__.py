"""Wrong captions: by rules, or by a language model."""

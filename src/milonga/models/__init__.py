"""Floor 2: the models that make clips from prompts."""

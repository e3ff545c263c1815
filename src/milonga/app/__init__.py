"""Floor 3: command line, recipes, the run's walk through the stages, and the registry that knows every part."""

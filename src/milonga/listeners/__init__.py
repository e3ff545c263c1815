"""Floor 2: the listeners: text-audio similarity, taggers and embedders."""

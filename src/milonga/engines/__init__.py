"""Floor 2: where sharded work runs."""

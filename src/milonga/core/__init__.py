"""Floor 0: records, parts, the store of shards, audio files and errors. Nothing here needs torch."""

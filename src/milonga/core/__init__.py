"""Records, protocols and files that every room stands on; nothing heavy is imported here."""

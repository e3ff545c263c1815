"""Floor 2, the nano room: a small world of captioned, synthesised sounds, and how the shipped weights were trained."""

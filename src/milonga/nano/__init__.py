"""Floor 2, the nano room: a small world of captioned, synthesised sounds, and how the weights that ship were trained."""

"""How nano's weights are made."""

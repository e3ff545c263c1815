"""nano's own training and benchmark."""

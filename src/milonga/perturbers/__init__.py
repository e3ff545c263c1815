"""Floor 2: rewriting a caption into close but wrong ones."""

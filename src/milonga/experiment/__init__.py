"""Recipes, run folders and their stages: TOML to run folder and back."""

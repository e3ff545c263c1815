"""Preference data: select captions, plan, generate, score, pair."""

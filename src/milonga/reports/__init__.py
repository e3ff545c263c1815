"""The run report, the leaderboard, cluster and pair pages, model and data cards."""

"""Open Bandit: predicts clicks on recommended items."""

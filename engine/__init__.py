"""How models are run: feature frames, inference sessions, and what this machine has."""

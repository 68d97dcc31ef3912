"""Task 1: predicts the next item of a session."""

"""Task 1: the next item of a session."""

"""Task 2: whether a cart ends in a purchase."""

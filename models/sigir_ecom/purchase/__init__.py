"""Task 2: predicts whether a cart ends in a purchase."""

"""Online Shoppers: predicts whether a session ends in a purchase."""

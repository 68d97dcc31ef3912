"""Online Shoppers: whether a session ends in a purchase."""

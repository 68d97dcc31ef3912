"""Shop sessions: their events, products and vocabulary."""

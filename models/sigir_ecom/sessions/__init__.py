"""Shop sessions: events, products, vocabulary."""

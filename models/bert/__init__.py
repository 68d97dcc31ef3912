"""BERT encoders in plain torch, with real weights, and the tasks that run them."""

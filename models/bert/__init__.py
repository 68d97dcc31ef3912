"""BERT encoders: plain torch, real weights, and the tasks that run them."""

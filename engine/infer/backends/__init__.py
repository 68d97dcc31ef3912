"""Inference backends, a file each."""

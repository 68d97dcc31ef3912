"""Inference backends, one per module. Each has `PRECISIONS` and `prepare(plan)`. No backend imports another."""

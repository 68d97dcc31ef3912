"""Inference backends, one per module. Each has `PRECISIONS` and `prepare(plan)`, and may import none of the others."""

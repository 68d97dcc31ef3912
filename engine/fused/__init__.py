"""Encoders on our Triton kernels: lowering, packing, sessions, tuning."""

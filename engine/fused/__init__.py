"""Encoders on this project's Triton kernels: packing of batches and weights, lowering to launches, sessions, and tuning."""

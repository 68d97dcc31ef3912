"""Triton kernels of encoders, and tools that compile, time and tune them. The package can be imported without Triton; its modules
cannot."""

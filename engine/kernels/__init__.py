"""Triton kernels of encoders, and the tools that compile, time and tune them. Importing this package needs no Triton; its modules do."""

"""CUDA C++ kernels of FP8 products for at most 128 tokens, on compute capability 9.0. `gemm.cu` describes them.

Importing the package and its modules needs neither Triton nor a GPU.
"""

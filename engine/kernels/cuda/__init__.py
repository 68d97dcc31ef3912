"""CUDA C++ kernels of products in FP8, INT8 and FP16 for at most 128 tokens, on compute capability 9.0. `gemm.cu` describes them.

Importing the package and its modules needs neither Triton nor a GPU.
"""

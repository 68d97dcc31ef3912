"""Feature engines, inference backends, GPU kernels, quantization, and facts about this machine."""

"""Feature engines, inference backends and kernels, and facts about this machine."""

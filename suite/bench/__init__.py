"""Benchmarks of one model: the plan, the protocol in the worker, reference outputs, timing, and MLPerf LoadGen."""

"""Runs of tasks: the plan, the worker process, the clock, the limits, the fits, and the checks of what a worker reports."""

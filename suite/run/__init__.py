"""One run: its plan, child process, clock, limits, fit and what is believed of it."""

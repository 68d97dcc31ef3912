"""A model alone: plan, protocol in the child, right answers, LoadGen."""

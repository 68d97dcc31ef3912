"""Complete Journey: predicts the next item of a household."""

"""Complete Journey: next item of a household."""

"""The contract between tasks, models and the harness."""

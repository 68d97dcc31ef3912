"""The contract between the harness, the tasks and the models that it runs."""

"""The interfaces between the harness and the tasks and models that it runs."""

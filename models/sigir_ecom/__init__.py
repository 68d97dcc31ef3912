"""SIGIR eCom 2021 data challenge (Coveo): the solutions of prize-winning teams for both tasks."""

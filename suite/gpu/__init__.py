"""The GPU suite: its steps, what a GPU machine without network needs for them, and a rehearsal of both."""

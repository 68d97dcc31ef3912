"""The GPU suite: its steps, the kit of files for a GPU machine without network, and a rehearsal of both."""

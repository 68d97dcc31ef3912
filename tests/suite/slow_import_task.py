"""A task that works while it is imported."""

import time

from cheating_task import SHORT_S, TASK

time.sleep(SHORT_S)

__all__ = ["TASK"]

"""Open Bandit: is a recommended fashion item clicked?"""

from buzzer.datasets.open_bandit.generator import generate
from buzzer.datasets.open_bandit.metric import score, write_submission
from buzzer.datasets.open_bandit.reader import check, convert

NAME = "open_bandit"

__all__ = ["NAME", "check", "convert", "generate", "score", "write_submission"]

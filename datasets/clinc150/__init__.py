"""CLINC150: short sentences with 150 intents, and out-of-scope sentences with none of them (Larson et al., EMNLP 2019)."""

from buzzer.datasets.clinc150.generator import generate
from buzzer.datasets.clinc150.metric import score, write_submission
from buzzer.datasets.clinc150.reader import check, convert, read

NAME = "clinc150"

__all__ = ["NAME", "check", "convert", "generate", "read", "score", "write_submission"]

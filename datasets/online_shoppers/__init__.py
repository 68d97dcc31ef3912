"""UCI 468, online shoppers: does a shop session end in a purchase? Real data, small, with clear terms."""

from buzzer.datasets.online_shoppers.metric import roc_auc, score, write_submission
from buzzer.datasets.online_shoppers.reader import check, convert, generate

NAME = "online_shoppers"

__all__ = ["NAME", "check", "convert", "generate", "roc_auc", "score", "write_submission"]

"""Online Shoppers Purchasing Intention (UCI 468): does a shop session end in a purchase?"""

from buzzer.datasets.online_shoppers.metric import roc_auc, score, write_submission
from buzzer.datasets.online_shoppers.reader import check, convert, generate

NAME = "online_shoppers"

__all__ = ["NAME", "check", "convert", "generate", "roc_auc", "score", "write_submission"]

"""Training of boosted trees by XGBoost in this process."""

from typing import Any

from buzzer.models.api import progress


def train(settings: dict[str, Any], data: Any, rounds: int) -> Any:
    """`xgboost.train` of a DMatrix; it reports its progress after each round."""
    from buzzer.engine.xgb import xgboost

    class Report(xgboost.callback.TrainingCallback):
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            progress.report((epoch + 1) / rounds)
            return False  # go on

    return xgboost.train(settings, data, rounds, callbacks=[Report()])

"""The parameters of the `open-bandit` task."""

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from buzzer.models.dataset_task import TaskContext, TaskParams
from buzzer.models.ranges import Depth, Part, Unit


class Params(TaskParams):
    """See configs/tasks/open-bandit.yaml."""

    smoothing: NonNegativeFloat
    rounds: PositiveInt
    depth: Depth
    eta: Unit
    min_child: NonNegativeFloat
    subsample: Part
    colsample: Part
    predict_rows: PositiveInt
    latency: NonNegativeInt


Context = TaskContext[Params]

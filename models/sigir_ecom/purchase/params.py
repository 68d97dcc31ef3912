"""The parameters of the `sigir-ecom-task2` task."""

from pydantic import NonNegativeInt, PositiveInt

from buzzer.models.dataset_task import TaskContext
from buzzer.models.ranges import Depth, Part, Unit
from buzzer.models.sigir_ecom.sessions.params import SessionParams


class Params(SessionParams):
    """See configs/tasks/sigir-ecom-task2.yaml."""

    rounds: PositiveInt
    depth: Depth
    eta: Unit
    colsample: Part
    common: NonNegativeInt
    hidden: PositiveInt


Context = TaskContext[Params]

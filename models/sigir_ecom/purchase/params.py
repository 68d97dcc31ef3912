"""The parameters of the `sigir-ecom-task2` task."""

from buzzer.models.dataset_task import TaskContext
from buzzer.models.sigir_ecom.sessions.params import SessionParams


class Params(SessionParams):
    """See configs/tasks/sigir-ecom-task2.yaml."""

    rounds: int
    depth: int
    eta: float
    colsample: float
    common: int
    hidden: int


Context = TaskContext[Params]

"""The parameters of the `sigir-ecom-task1` task."""

from buzzer.models.dataset_task import TaskContext
from buzzer.models.sigir_ecom.sessions.params import SessionParams


class Params(SessionParams):
    """See configs/tasks/sigir-ecom-task1.yaml."""

    networks: list[str]
    length: int
    followers: int
    first_norm: float
    layers: int
    heads: int
    smoothing: float
    patience: int
    candidates: int


Context = TaskContext[Params]

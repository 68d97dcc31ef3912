"""The parameters of the `booking` task."""

from buzzer.models.dataset_task import TaskContext, TaskParams


class Params(TaskParams):
    """See configs/tasks/booking.yaml."""

    networks: list[str]
    lags: int
    rare: int
    dim: int
    hidden: int
    layers: int
    heads: int
    dropout: float
    candidates: int
    epochs: int
    patience: int
    batch: int
    lr: float
    valid: float
    predict_batch: int


Context = TaskContext[Params]

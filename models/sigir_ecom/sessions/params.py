"""The parameters that both tasks share; reading sessions needs them."""

from buzzer.models.dataset_task import TaskContext, TaskParams


class SessionParams(TaskParams):
    """See configs/tasks/sigir-ecom-task1.yaml and sigir-ecom-task2.yaml."""

    rare: int
    query_dims: int
    dim: int
    dropout: float
    epochs: int
    batch: int
    lr: float
    valid: float
    predict_batch: int
    piece_sessions: int
    piece_rows: int
    latency: int


SessionContext = TaskContext[SessionParams]

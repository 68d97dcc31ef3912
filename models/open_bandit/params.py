"""The parameters of the `open-bandit` task."""

from buzzer.models.dataset_task import TaskContext, TaskParams


class Params(TaskParams):
    """See configs/tasks/open-bandit.yaml."""

    smoothing: float
    rounds: int
    depth: int
    eta: float
    min_child: float
    subsample: float
    colsample: float
    predict_rows: int
    latency: int


Context = TaskContext[Params]

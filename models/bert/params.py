"""The parameters of the `bert-intent` and `bert-intent-precision` tasks."""

from buzzer.models.dataset_task import TaskContext, TaskParams


class IntentParams(TaskParams):
    """See configs/tasks/bert-intent.yaml."""

    weights: str
    longest: int
    batch: int
    latency: int
    l2: list[float]


class PrecisionParams(IntentParams):
    """See configs/tasks/bert-intent-precision.yaml."""

    layers: int
    checkpoints: list[str]
    epochs: int
    lr: float
    tune_batch: int
    tune_bf16: bool | str
    calibration: int
    method: str
    smooth: float
    qat_epochs: int
    qat_lr: float
    sparse_epochs: int
    sparse_lr: float


IntentContext = TaskContext[IntentParams]
PrecisionContext = TaskContext[PrecisionParams]

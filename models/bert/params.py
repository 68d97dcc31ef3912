"""The parameters of the `bert-intent` and `bert-intent-precision` tasks."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from buzzer.models.dataset_task import TaskContext, TaskParams
from buzzer.models.ranges import Unit


class IntentParams(TaskParams):
    """See configs/tasks/bert-intent.yaml."""

    weights: str
    longest: Annotated[int, Field(ge=3)]  # two tokens are special
    batch: PositiveInt
    latency: NonNegativeInt
    l2: Annotated[list[NonNegativeFloat], Field(min_length=1)]


class PrecisionParams(IntentParams):
    """See configs/tasks/bert-intent-precision.yaml."""

    layers: NonNegativeInt
    checkpoints: list[str]
    epochs: PositiveInt
    lr: PositiveFloat
    tune_batch: PositiveInt
    tune_bf16: Literal[True, False, "auto"]
    calibration: PositiveInt
    method: Literal["absmax", "percentile", "mse"]
    smooth: Unit
    qat_epochs: PositiveInt
    qat_lr: PositiveFloat
    sparse_epochs: PositiveInt
    sparse_lr: PositiveFloat


IntentContext = TaskContext[IntentParams]
PrecisionContext = TaskContext[PrecisionParams]

"""The parameters that both tasks share; reading sessions needs them."""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from buzzer.datasets.sigir_ecom.schema import DIMS
from buzzer.models.dataset_task import TaskContext, TaskParams
from buzzer.models.ranges import Share


class SessionParams(TaskParams):
    """See configs/tasks/sigir-ecom-task1.yaml and sigir-ecom-task2.yaml."""

    rare: NonNegativeInt
    query_dims: Annotated[int, Field(ge=1, le=DIMS)]
    dim: PositiveInt
    dropout: Share
    epochs: PositiveInt
    batch: PositiveInt
    lr: PositiveFloat
    valid: Annotated[float, Field(gt=0, lt=1)]  # the weights of the ensemble need held-out rows
    predict_batch: PositiveInt
    piece_sessions: PositiveInt
    piece_rows: PositiveInt
    latency: NonNegativeInt


SessionContext = TaskContext[SessionParams]

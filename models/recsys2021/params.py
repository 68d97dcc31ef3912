"""The parameters of the `recsys2021` task."""

from buzzer.models.dataset_task import TaskContext, TaskParams


class Params(TaskParams):
    """See configs/tasks/recsys2021.yaml."""

    trees: list[str]
    networks: list[str]
    second: list[str]
    baseline: bool
    features: str
    sample_rows: int
    network_rows: int
    second_rows: int
    tables: str
    pair_rows: int
    rounds_1: int
    depth_1: int
    rounds_2: int
    depth_2: int
    min_child_1: float
    min_child_2: float
    eta: float
    subsample: float
    colsample: float
    group_rows: int
    tokens: int
    token_vectors: str
    token_dim: int
    user_rows: int
    user_dim: int
    hidden: int
    dropout: float
    epochs: int
    batch: int
    lr: float
    piece_rows: int
    predict_batch: int


Context = TaskContext[Params]

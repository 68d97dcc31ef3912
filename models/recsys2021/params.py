"""The parameters of the `recsys2021` task.

Many may be one number for all models, or a mapping by model: `depth_1: {kfold: 8, loo: 6}`. Rounds and learning rates may also be given by
model and label: `rounds_1: {kfold: {reply: 250, retweet: 250, quote: 200, like: 250}, loo: 600}`.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias, cast

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from buzzer.datasets.recsys2021.schema import LABELS
from buzzer.models.by_model import ByModel, V, check_complete, check_names, of
from buzzer.models.dataset_task import TaskContext, TaskParams
from buzzer.models.ranges import Depth, Part, Rows, Share, Unit
from buzzer.models.weights import Weights

ByLabel: TypeAlias = V | dict[str, V | dict[str, V]]

TREES = ("kfold", "loo", "split")  # first stage, by how their training rows are encoded
SECOND = ("loo", "kfold")
NETWORKS = ("pooled", "gru64", "gru128")
# Network -> the columns of `users` that it reads: 0 = author, 1 = reader. Networks that are not here read neither users nor texts.
SIDES: dict[str, tuple[int, ...]] = {"pooled": (0, 1), "gru64": (1,), "gru128": (0, 1)}
BASELINE = "logistic"  # trained and scored as a network, never stacked


def second_name(model: str) -> str:
    """The name of a second-stage model in mappings and scores."""
    return f"second_{model}"


Sampling = Literal["uniform", "gradient_based"]
Width = Annotated[int, Field(ge=4)]  # the last layer of gru128 has a quarter of it
ALL_TREES = (*TREES, *map(second_name, SECOND))
ALL_NETWORKS = (*NETWORKS, BASELINE)
# Parameter -> the models that a mapping may name.
MAPPINGS: dict[str, tuple[str, ...]] = {
    "rounds_1": TREES,
    "depth_1": TREES,
    "rounds_2": ALL_TREES[len(TREES) :],
    "depth_2": ALL_TREES[len(TREES) :],
    **dict.fromkeys(("eta", "subsample", "sampling", "colsample"), ALL_TREES),
    **dict.fromkeys(("tokens", "user_dim", "hidden", "dropout", "batch", "lr"), ALL_NETWORKS),
    "bags": (*ALL_TREES, *ALL_NETWORKS),
}
BY_LABEL = ("rounds_1", "rounds_2", "eta")


class Params(TaskParams):
    """See configs/tasks/recsys2021.yaml."""

    trees: list[str]
    networks: list[str]
    second: list[str]
    baseline: bool
    weights: Weights
    bags: ByModel[PositiveInt]
    features: str
    vocabulary: str
    sample_rows: Rows
    network_rows: Rows
    second_rows: PositiveInt
    tables: Literal["text", "drawn"]
    pair_rows: PositiveInt
    rounds_1: ByLabel[PositiveInt]
    depth_1: ByModel[Depth]
    rounds_2: ByLabel[PositiveInt]
    depth_2: ByModel[Depth]
    min_child_1: NonNegativeFloat
    min_child_2: NonNegativeFloat
    eta: ByLabel[Unit]
    subsample: ByModel[Part]
    sampling: ByModel[Sampling]
    colsample: ByModel[Part]
    group_rows: NonNegativeInt
    tokens: ByModel[PositiveInt]
    token_vectors: str
    token_dim: PositiveInt
    word_dim: PositiveInt
    user_rows: NonNegativeInt
    user_table_rows: NonNegativeInt
    user_dim: ByModel[PositiveInt]
    user_type: Literal["float32", "float16"]
    hidden: ByModel[Width]
    dropout: ByModel[Share]
    epochs: PositiveInt
    batch: ByModel[Rows]
    lr: ByModel[PositiveFloat]
    piece_rows: NonNegativeInt
    predict_batch: NonNegativeInt

    @classmethod
    def read(cls, task: str, values: Mapping[str, Any]) -> Self:
        """As `TaskParams.read`. Also raises UsageError for a mapping that names an unknown model or label, or lacks one of the run's."""
        params = super().read(task, values)
        for key, known in MAPPINGS.items():
            if isinstance(value := getattr(params, key), dict):
                check_names(key, "model", value, known)
                used = [] if key == "bags" else [model for model in params.used() if model in known]
                check_complete(key, "model", value, used)
                for model, inner in value.items():
                    if isinstance(inner, dict):
                        check_names(f"{key}.{model}", "label", inner, tuple(LABELS))
                        check_complete(f"{key}.{model}", "label", inner, tuple(LABELS))
        return params

    def used(self) -> Iterator[str]:
        """The names of the run's models in mappings."""
        yield from self.trees
        yield from map(second_name, self.second)
        yield from (*self.networks, BASELINE) if self.baseline else self.networks

    def bags_of(self, model: str) -> int:
        """The number of models of this kind whose probabilities are averaged. A model that the mapping does not name has one."""
        return self.bags.get(model, 1) if isinstance(self.bags, dict) else self.bags

    def longest_text(self) -> int:
        """The most tokens that a network of the run reads, 0 without networks."""
        return max((of(self.tokens, name) for name in self.used() if name in ALL_NETWORKS), default=0)


def of_label(value: ByLabel[V], model: str, label: str) -> V:
    """The value for a model and a label, of a parameter that is one value, a mapping by model, or one by model and label."""
    by_label = cast("ByModel[V]", value[model]) if isinstance(value, dict) else value
    return of(by_label, label)


Context = TaskContext[Params]

"""A file of boosted trees as a bench target: XGBoost's `.ubj` and `.json`, LightGBM's `.txt`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine.infer import Array, boosted, ubjson
from buzzer.engine.infer.session import as_array
from buzzer.engine.infer.trees import LIGHTGBM, by_row, load, load_lightgbm
from buzzer.errors import UnsupportedError, UsageError
from buzzer.models import inputs_file
from buzzer.models.api.bench import Batch, BenchModel, BenchSpec
from buzzer.models.inputs_file import Wanted

OUTPUT, FEATURES = "prediction", "features"
RANDOM = "random rows around the trees' own thresholds, without missing values: use --inputs for real rows"


@dataclass(frozen=True)
class Described:
    """What a file of trees needs and computes."""

    width: int  # columns of a row
    predict: Callable[[Array], Array]  # of rows float32 [rows, columns], by the reference library
    thresholds: Mapping[
        int, Array
    ]  # column -> values that its splits compare with; the numbers of its categories
    facts: Mapping[str, Any]  # for the record


class TreeFile:
    """params: `path` of the file."""

    def load(self, spec: BenchSpec) -> BenchModel:
        """The file with random rows, or those of `spec.file`. Raises UsageError for rows of real lengths, DataError for an invalid file."""
        if spec.lengths != "fixed":
            raise UsageError("trees have no sentences: --lengths real is for encoders")
        path = Path(spec.params["path"])
        trees = lightgbm(path) if path.suffix == LIGHTGBM else xgboost(path)
        batches, notes = inputs(trees, spec)
        return BenchModel(
            path,
            (OUTPUT,),
            batches,
            lambda batch: {OUTPUT: trees.predict(batch[FEATURES])},
            [spec.batch] * len(batches),
            dynamic={FEATURES: {0: "batch"}},
            source="generated" if spec.file is None else "official",
            notes=notes,
            facts={"columns": trees.width, **trees.facts},
        )

    def identity(self, spec: BenchSpec) -> None:
        """None: the reference outputs take little time."""


def xgboost(path: Path) -> Described:
    """An XGBoost file. The reference is a prediction from a DMatrix; the measured backend predicts in place."""
    from xgboost import DMatrix

    booster = load(path)
    learner = ubjson.loads(bytes(booster.save_raw("ubj")))["learner"]
    booster_part = learner["gradient_booster"]
    trees = booster_part.get("gbtree", booster_part)["model"].get(
        "trees", []
    )  # DART has them one level deeper
    if not trees:
        raise UnsupportedError(
            f"{path}: a model of type {booster_part['name']} has no trees", "bench takes trees"
        )
    facts = {
        "library": "xgboost",
        "objective": learner["objective"]["name"],
        "booster": booster_part["name"],
        "trees": len(trees),
        "classes": boosted.classes(learner),
    }
    splits: dict[int, list[float]] = {}
    for tree in trees:
        for at in np.flatnonzero(np.asarray(tree["left_children"]) >= 0).tolist():
            splits.setdefault(int(tree["split_indices"][at]), []).append(float(tree["split_conditions"][at]))
        for node, start, size in zip(
            tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True
        ):
            named = np.asarray(tree["categories"][start : start + size], dtype=float)
            splits[int(tree["split_indices"][node])] = np.arange(named.max() + 2).tolist()

    def predict(rows: Array) -> Array:
        matrix = DMatrix(rows, feature_types=booster.feature_types, enable_categorical=True)
        return as_array(booster.predict(matrix, validate_features=False))

    width = int(learner["learner_model_param"]["num_feature"])
    return Described(width, predict, {k: np.array(v) for k, v in splits.items()}, facts)


def lightgbm(path: Path) -> Described:
    """A LightGBM file, read by treelite, whose general prediction is the reference."""
    model = load_lightgbm(path)
    import treelite

    header = model.get_header_accessor()
    facts = {
        "library": "lightgbm",
        "objective": str(header.get_field("postprocessor")),
        "booster": "gbtree",
        "trees": model.num_tree,
        "classes": int(header.get_field("num_class")[0]),
    }
    splits: dict[int, list[float]] = {}
    for number in range(model.num_tree):
        tree = model.get_tree_accessor(number)
        columns, values = tree.get_field("split_index"), tree.get_field("threshold")
        categories = tree.get_field("category_list")
        begin, end = tree.get_field("category_list_begin"), tree.get_field("category_list_end")
        for at in np.flatnonzero(tree.get_field("cleft") >= 0).tolist():
            compared = categories[begin[at] : end[at]] if begin[at] < end[at] else values[[at]]
            splits.setdefault(int(columns[at]), []).extend(map(float, compared))

    def predict(rows: Array) -> Array:
        return as_array(by_row(treelite.gtil.predict(model, rows), len(rows)))

    return Described(model.num_feature, predict, {k: np.array(v) for k, v in splits.items()}, facts)


def inputs(trees: Described, spec: BenchSpec) -> tuple[list[Batch], tuple[str, ...]]:
    """The batches, random or from the file, and notes on them."""
    if spec.file is not None:
        wanted = Wanted(FEATURES, np.dtype("float32"), (None, trees.width))
        found = inputs_file.given(spec, [wanted])
        return found.batches, found.notes
    rng = np.random.default_rng(spec.seed)
    return [{FEATURES: sample(trees, spec.batch, rng)} for _ in range(spec.inputs)], (RANDOM,)


def sample(trees: Described, rows: int, rng: np.random.Generator) -> Array:
    """Random rows, float32 [rows, columns]: each value is a threshold of its column, moved by the spread of these thresholds.

    Rows then take both ways at most splits, as real rows do. Whole thresholds (of counts and categories) give whole values.
    """
    x = rng.standard_normal((rows, trees.width)).astype("float32")
    for column, thresholds in trees.thresholds.items():
        spread = float(thresholds.std()) or 1.0
        values = rng.choice(thresholds, rows) + spread * rng.standard_normal(rows)
        whole = bool(np.array_equal(thresholds, np.round(thresholds)))
        if whole:
            values = np.clip(np.round(values), max(thresholds.min() - 1, 0), thresholds.max() + 1)
        x[:, column] = values
    return x


TARGET = TreeFile()

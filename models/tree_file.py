"""A file of boosted trees as a bench target: XGBoost's `.ubj` and `.json`, LightGBM's `.txt`."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine.infer import Array, boosted, ubjson
from buzzer.engine.infer.session import as_array
from buzzer.errors import DataError, UnsupportedError, UsageError
from buzzer.models import held_out, inputs_file
from buzzer.models.api.bench import Batch, BenchModel, BenchSpec
from buzzer.models.held_out import HeldOut
from buzzer.models.inputs_file import Wanted

OUTPUT, FEATURES = "prediction", "features"
LIGHTGBM = ".txt"  # suffix of LightGBM's files
NAMES, LAST_COLUMN = "feature_names=", "max_feature_idx="  # starts of lines of a LightGBM file
SMALL = 16 << 20  # larger files of trees, in bytes, are not read before a run
RANDOM = "random rows around the trees' own thresholds, without missing values: use --inputs for real rows"


@dataclass(frozen=True)
class Described:
    """What a file of trees needs and computes."""

    width: int  # columns of a row
    predict: Callable[[Array], Array]  # of rows float32 [rows, columns], by the reference library
    thresholds: Mapping[
        int, Array
    ]  # column -> values that its splits compare with; the numbers of its categories
    names: Sequence[str]  # of the columns; empty if the file has none
    facts: Mapping[str, Any]  # for the record


class TreeFile:
    """params: `path` of the file."""

    def load(self, spec: BenchSpec) -> BenchModel:
        """The file with the rows of `spec.file`, of a task, or random ones. Raises UsageError for rows of real lengths, DataError for an invalid file."""
        check_lengths(spec)
        path = Path(spec.params["path"])
        trees = lightgbm(path) if path.suffix == LIGHTGBM else xgboost(path)
        batches, source, notes = inputs(trees, spec)
        return BenchModel(
            path,
            (OUTPUT,),
            batches,
            lambda batch: {OUTPUT: trees.predict(batch[FEATURES])},
            [spec.batch] * len(batches),
            dynamic={FEATURES: {0: "batch"}},
            source=source,
            notes=notes,
            facts={"columns": trees.width, **trees.facts},
        )

    def check(self, spec: BenchSpec) -> None:
        """Raises as `load` does, by the first byte or line of the file and the columns of the file with the inputs."""
        check_lengths(spec)
        path = Path(spec.params["path"])
        check_start(path)
        if inputs_file.is_small(spec.file):
            inputs_file.given(spec, [Wanted(FEATURES, np.dtype("float32"), (None, width_of(path)))])

    def identity(self, spec: BenchSpec) -> None:
        """None: the reference outputs take little time."""


def check_lengths(spec: BenchSpec) -> None:
    """Raises UsageError for rows of real lengths."""
    if spec.lengths != "fixed":
        raise UsageError("trees have no sentences: --lengths real is for encoders")


def check_start(path: Path) -> None:
    """Raises DataError for a file that cannot be of its library, without importing it: XGBoost's are objects, LightGBM's begin with a line."""
    with path.open("rb") as opened:
        start = opened.read(100)
    library, first = ("LightGBM", b"tree") if path.suffix == LIGHTGBM else ("XGBoost", b"{")
    if not start.lstrip().startswith(first):
        shown = start[:20].decode(errors="replace")
        raise DataError(f"{path}: not a model of {library}: it begins with {shown!r}, not {first.decode()!r}")


def width_of(path: Path) -> int | None:
    """The number of columns that a file of trees reads, without importing its library; None where that is not known."""
    if path.stat().st_size > SMALL:
        return None
    with suppress(ValueError, LookupError, TypeError):
        if path.suffix == LIGHTGBM:
            return int(lightgbm_line(path, LAST_COLUMN)) + 1
        content = path.read_bytes()
        model = ubjson.loads(content) if path.suffix == ".ubj" else json.loads(content)
        return int(model["learner"]["learner_model_param"]["num_feature"])
    return None


def xgboost(path: Path) -> Described:
    """An XGBoost file. The reference is a prediction from a DMatrix; the measured backend predicts in place."""
    from buzzer.engine.infer.trees import load
    from buzzer.engine.xgb import xgboost as xgb

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
        matrix = xgb.DMatrix(rows, feature_types=booster.feature_types, enable_categorical=True)
        return as_array(booster.predict(matrix, validate_features=False))

    width = int(learner["learner_model_param"]["num_feature"])
    thresholds = {k: np.array(v) for k, v in splits.items()}
    return Described(width, predict, thresholds, booster.feature_names or (), facts)


def lightgbm(path: Path) -> Described:
    """A LightGBM file, read by treelite, whose general prediction is the reference."""
    from buzzer.engine.infer.trees import by_row, load_lightgbm

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

    thresholds = {k: np.array(v) for k, v in splits.items()}
    return Described(model.num_feature, predict, thresholds, lightgbm_names(path), facts)


def lightgbm_names(path: Path) -> list[str]:
    """The names of the columns of a LightGBM file; empty if they are only numbered."""
    names = lightgbm_line(path, NAMES).split()
    return [] if names == [f"Column_{number}" for number in range(len(names))] else names


def lightgbm_line(path: Path, start: str) -> str:
    """The first line of a LightGBM file that has this start, without it; "" if none has."""
    with path.open(encoding="utf-8") as lines:
        return next((line.removeprefix(start) for line in lines if line.startswith(start)), "")


def inputs(trees: Described, spec: BenchSpec) -> tuple[list[Batch], str, tuple[str, ...]]:
    """The batches, their origin and notes on them: rows of the file, or held-out rows of a task with these columns, or else random rows."""
    if spec.file is not None:
        wanted = Wanted(FEATURES, np.dtype("float32"), (None, trees.width))
        found = inputs_file.given(spec, [wanted])
        return found.batches, "official", found.notes
    if (task := held_out.fitting(task_tables(), trees.names, trees.width)) is not None:
        rows = task.rows(spec)
        given = inputs_file.batches({FEATURES: rows.values}, spec)
        return given, rows.source, (task.note(rows), *inputs_file.repeated(len(rows.values), spec))
    rng = np.random.default_rng(spec.seed)
    return [{FEATURES: sample(trees, spec.batch, rng)} for _ in range(spec.inputs)], "generated", (RANDOM,)


def task_tables() -> list[HeldOut]:
    """The tables of held-out rows of the tasks that have boosted trees."""
    from buzzer.models.online_shoppers.held_out import FEATURES as SHOPPERS
    from buzzer.models.online_shoppers.held_out import FILE
    from buzzer.models.recsys2021.bench import FIRST_STAGE

    return [FIRST_STAGE, FILE, SHOPPERS]


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

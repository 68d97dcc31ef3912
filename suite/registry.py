"""What can be run: tasks from configs/tasks/*.yaml, data sets from their folders. Importing this imports no model."""

import hashlib
import importlib
import json
import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from buzzer import configs
from buzzer.engine import frames, infer
from buzzer.errors import UsageError, unknown_name
from buzzer.models.api.context import Progress

NO_ENGINE = "none"
DATASETS = Path(configs.FOLDER).parent / "datasets"
GPU_ENGINES = ("cudf", "polars-gpu")


class Variant(BaseModel):
    """An engine and a backend."""

    model_config = ConfigDict(extra="forbid")
    engine: str
    backend: str


class TaskConfig(BaseModel):
    """configs/tasks/<name>.yaml."""

    model_config = ConfigDict(extra="forbid")
    name: str
    aliases: list[str] = []  # other names that the command line takes
    summary: str
    entry: str  # module:attr of the Task
    dataset: str  # folder under datasets/
    engines: list[str]
    backends: list[str]
    reference: Variant  # what the gate compares with
    metric: str  # the score that ranks, higher is better
    tolerance: float  # how far any score may lie from the reference's, absolute
    precisions: list[str] = ["fp32"]  # those that run where none is asked for
    relative: dict[
        str, float
    ] = {}  # precision -> least share of the reference's ranked score, in place of `tolerance`
    scale: float = 1.0
    clustered: bool = False  # whether `predict` can be shared out over Dask workers
    submission: str = ""  # the file that a run hands in; "" = what it hands in cannot be scored again
    truth: str = ""  # what it is scored against: a pattern of a file or folder among the data
    params: dict[str, Any] = {}

    def with_params(self, overrides: dict[str, str]) -> "TaskConfig":
        """The task with `--set key=value` applied, each value of its default's type."""
        merged = dict(self.params)
        for key, text in overrides.items():
            if key not in merged:
                raise unknown_name(f"parameter of {self.name}", key, merged)
            merged[key] = _typed(self.name, key, text, merged[key])
        return self.model_copy(update={"params": merged})

    @property
    def config_hash(self) -> str:
        return params_hash(self.params)


def params_hash(params: dict[str, Any]) -> str:
    """First 12 hex digits of the sha256 of a task's parameters."""
    return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()[:12]


def _typed(task: str, key: str, text: str, default: Any) -> Any:
    from buzzer.suite import config_file

    value = config_file.parse(text, f"--set {key}={text[:80]}")
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if default is not None and type(value) is not type(default):
        kind = type(default).__name__
        raise UsageError(
            f"--set {key}={text[:80]}: {task}'s {key} is of type {kind}", f"its default is {default!r}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"--set {key}={text[:80]}: not a finite number", f"its default is {default!r}")
    kinds = {type(one) for one in default} if isinstance(default, list) else set()
    if kinds == {float}:
        value = [float(one) if type(one) is int else one for one in value]
    if kinds and (odd := [one for one in value if type(one) not in kinds]):
        told = " or ".join(sorted(kind.__name__ for kind in kinds))
        raise UsageError(
            f"--set {key}={text[:80]}: {config_file.shown(odd[0])} is not of type {told}",
            f"its default is {default!r}",
        )
    return value


@cache
def tasks() -> dict[str, TaskConfig]:
    """All tasks by name."""
    found = {}
    for path in sorted((configs.FOLDER / "tasks").glob("*.yaml")):
        try:
            task = TaskConfig.model_validate(read_task(path.stem))
        except ValidationError as error:
            raise UsageError(f"{path}: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from error
        found[task.name] = task
    return found


def read_task(name: str) -> dict[str, Any]:
    """A task's file, with what it leaves to its `base`; parameters are merged key by key."""
    given = dict(configs.load_yaml(f"tasks/{name}.yaml"))
    if (base := given.pop("base", None)) is None:
        return given
    inherited = read_task(base)
    return inherited | given | {"params": inherited["params"] | given.get("params", {})}


def task(name: str) -> TaskConfig:
    """One task, by its name or an alias; an unknown name gets a did-you-mean."""
    by_name = {alias: task for task in tasks().values() for alias in (*task.aliases, task.name)}
    if name not in by_name:
        raise unknown_name("task", name, by_name)
    return by_name[name]


class ModelConfig(BaseModel):
    """An entry of configs/models.yaml: what `buzzer bench` can time."""

    model_config = ConfigDict(extra="forbid")
    name: str
    summary: str
    entry: str  # module:attr of the Target
    backends: list[str]  # the first is the one that others are compared with
    tokens: bool = True  # whether rows have a length that --seq sets
    params: dict[str, Any] = {}


def models() -> dict[str, ModelConfig]:
    """All named models."""
    named = configs.load_yaml("models.yaml")["models"]
    return {name: ModelConfig(name=name, **entry) for name, entry in named.items()}


def model(text: str) -> ModelConfig:
    """A model by name, or of a file or folder; an unknown name gets a did-you-mean."""
    if text in models():
        return models()[text]
    path, kinds = Path(text), configs.load_yaml("models.yaml")["paths"]
    kind = "folder" if path.is_dir() else path.suffix
    if kind in kinds and path.exists():
        entry = kinds[kind]
        params = dict.fromkeys(entry["params"], str(path.resolve()))
        return ModelConfig(name=path.resolve().stem, **entry | {"params": params})
    if path.exists():
        known = "; ".join(f"{entry['summary']} ({suffix})" for suffix, entry in kinds.items())
        raise UsageError(
            f"{text}: not a kind of file that can be timed", f"known: {known}; `buzzer list` names models"
        )
    if path.suffix or "/" in text:
        raise UsageError(f"{text}: no such file or folder", f"known names: {', '.join(models())}")
    raise unknown_name("model", text, models())


def precisions() -> tuple[str, ...]:
    """Every precision that a backend may have."""
    return tuple(configs.load_yaml("models.yaml")["gates"])


def check_precisions(asked: Iterable[str], own: Iterable[str] = ()) -> None:
    """Raises UsageError for a precision that no backend knows, nor is among a task's `own`."""
    known = {*precisions(), *own}
    for name in asked:
        if name not in known:
            raise unknown_name("precision", name, known)


def bench_gate(precision: str) -> dict[str, float]:
    """What a bench run's outputs must keep to against the FP32 reference: `cosine` at least, `error` at most."""
    found: dict[str, float] = configs.load_yaml("models.yaml")["gates"][precision]
    return found


class Dataset(Protocol):
    """What a data set's module offers to `buzzer data`."""

    NAME: str

    def generate(self, out: Path, scale: float, seed: int, progress: Progress, **options: Any) -> None: ...
    def check(self, folder: Path, progress: Progress) -> Any: ...
    def score(self, submission: Path, truth: Path) -> dict[str, float]: ...
    def convert(self, folder: Path, out: Path, progress: Progress) -> None: ...


def datasets() -> list[str]:
    """Names of the data sets: the folders under datasets/ that hold a card."""
    return sorted(path.parent.name for path in DATASETS.glob("*/card.md"))


def dataset_name(name: str) -> str:
    """The data set of that name, or of a task of that name."""
    known = datasets()
    folder = tasks()[name].dataset if name in tasks() else name
    if folder not in known:
        raise unknown_name("data set", name, [*known, *tasks()])
    return folder


def dataset(name: str) -> Dataset:
    """A data set by its own name or by that of a task that uses it."""
    module: Any = importlib.import_module(f"buzzer.datasets.{dataset_name(name)}")
    return module


def card(name: str) -> str:
    """A data set's card: schema, terms, where to get it, how the generator works. Imports nothing of it."""
    return (DATASETS / dataset_name(name) / "card.md").read_text(encoding="utf-8")


def engines() -> tuple[str, ...]:
    return tuple(frames.ENGINES)


def backends() -> tuple[str, ...]:
    return tuple(infer.BACKENDS)

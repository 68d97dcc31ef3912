"""Finds what can be run: tasks in configs/tasks/*.yaml, models in configs/models.yaml, data sets by their folders, and plug-ins of each
kind. Imports no model."""

import hashlib
import importlib.util
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from buzzer import configs, plugins
from buzzer.datasets.contract import DataSet
from buzzer.engine import frames, infer
from buzzer.errors import UnsupportedError, UsageError, unknown_name
from buzzer.plugins import Plugin

NO_ENGINE = "none"
C = TypeVar("C", bound=BaseModel)
DATASETS = Path(configs.FOLDER).parent / "datasets"


class Variant(BaseModel):
    """An engine and a backend that run together."""

    model_config = ConfigDict(extra="forbid")
    engine: str
    backend: str


class TaskConfig(BaseModel):
    """The descriptor of a task: configs/tasks/<name>.yaml, or that of a plug-in."""

    model_config = ConfigDict(extra="forbid")
    name: str
    aliases: list[str] = []  # other names that the command line accepts
    summary: str
    entry: str  # module:attr of the Task
    dataset: str = ""  # name of its data set; "" = the task makes or reads its files itself
    engines: list[str]
    backends: list[str]
    # Kinds of its models. Backends of plug-ins that run one of these kinds are added to `backends`.
    kinds: list[infer.Kind] = ["networks"]
    reference: Variant  # the gate compares all other variants with this one
    metric: str  # the score by which runs are ranked; higher is better
    tolerance: float  # largest absolute difference of a score from the reference's
    precisions: list[str] = ["fp32"]  # run by default
    # Precision -> least share of the reference's ranked score. Used instead of `tolerance`.
    relative: dict[str, float] = {}
    scale: float = 1.0
    resumable: bool = (
        False  # whether an interrupted `predict` can go on from its last whole piece (`RunContext.partial`)
    )
    clustered: bool = False  # whether `predict` can be distributed over Dask workers
    submission: str = ""  # name of the submission, which `buzzer data rescore` scores again; "" = none
    truth: str = ""  # file or folder of the data that it is scored against, as a glob pattern; "." = the folder of the data
    params: dict[str, Any] = {}

    def with_params(self, overrides: dict[str, str]) -> "TaskConfig":
        """The task with the parameters of `--set key=value`. Raises UsageError for an unknown key or a value of another type than the default."""
        merged = dict(self.params)
        for key, text in overrides.items():
            if key not in merged:
                raise unknown_name(f"parameter of {self.name}", key, merged)
            merged[key] = _typed(self.name, key, text, merged[key])
        return self.model_copy(update={"params": merged})

    @property
    def config_hash(self) -> str:
        """The `params_hash` of this task's parameters."""
        return params_hash(self.params)


def params_hash(params: dict[str, Any]) -> str:
    """The first 12 hexadecimal digits of the sha256 of a task's parameters."""
    return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()[:12]


def changed_params(task: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a run that differ from today's defaults of its task; empty for an unknown task."""
    defaults = tasks()[task].params if task in tasks() else {}
    return {name: value for name, value in params.items() if name in defaults and value != defaults[name]}


def _typed(task: str, key: str, text: str, default: Any) -> Any:
    """The value of `--set key=text`. Raises UsageError if its type is not that of the default."""
    from buzzer.suite import config_file

    option, hint = f"--set {key}={text[:80]}", f"its default is {default!r}"
    value = config_file.parse(text, option)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(value, dict) or isinstance(default, dict):
        return _mapping(option, hint, value, default)
    if default is not None and type(value) is not type(default):
        raise UsageError(f"{option}: {task}'s {key} is of type {type(default).__name__}", hint)
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{option}: not a finite number", hint)
    if not isinstance(value, list) or not isinstance(default, list) or not default:
        return value
    kinds = {type(item) for item in default}
    items = [float(item) if kinds == {float} and type(item) is int else item for item in value]
    if odd := [item for item in items if type(item) not in kinds]:
        expected = " or ".join(sorted(kind.__name__ for kind in kinds))
        raise UsageError(f"{option}: {config_file.shown(odd[0])} is not of type {expected}", hint)
    return items


def _mapping(option: str, hint: str, value: Any, default: Any) -> Any:
    """A mapping in place of one value, or the reverse. Its values must have the types of the default's values."""
    from buzzer.suite import config_file

    expected = {type(leaf) for leaf in _leaves(default)}
    allowed = expected | ({int} if float in expected else set())
    for leaf in _leaves(value):
        if type(leaf) not in allowed:
            names = " or ".join(sorted(kind.__name__ for kind in expected))
            raise UsageError(f"{option}: {config_file.shown(leaf)} is not of type {names}", hint)
        if isinstance(leaf, float) and not math.isfinite(leaf):
            raise UsageError(f"{option}: not a finite number", hint)
    return value


def _leaves(value: Any) -> Iterator[Any]:
    """The values of a mapping of mappings, or the value itself."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    else:
        yield value


@cache
def tasks() -> dict[str, TaskConfig]:
    """All tasks by name, built-in tasks first. Each has the engines and backends of plug-ins that can run it."""
    added = {name: plugin.value for name, plugin in plugin_tasks().items()}
    return {name: with_plugins(task) for name, task in (built_in_tasks() | added).items()}


@cache
def built_in_tasks() -> dict[str, TaskConfig]:
    """The tasks of configs/tasks/. Raises UsageError for a file that does not describe a task."""
    by_name = {}
    for path in sorted((configs.FOLDER / "tasks").glob("*.yaml"), key=lambda file: file.stem):
        try:
            task = TaskConfig.model_validate(read_task(path.stem))
        except ValidationError as error:
            raise UsageError(f"{path}: {first_problem(error)}") from error
        by_name[task.name] = task
    return by_name


@cache
def plugin_tasks() -> dict[str, Plugin[TaskConfig]]:
    """The tasks of plug-ins by name: entry points of the group `buzzer.tasks`."""
    taken = {name for task in built_in_tasks().values() for name in (task.name, *task.aliases)}

    def make(entry: EntryPoint) -> TaskConfig:
        task = validated(TaskConfig, entry, with_base({"aliases": []} | fields_of(entry)))
        if used := taken & set(task.aliases):
            raise UnsupportedError(f"its alias {min(used)} is the name of a built-in task")
        return task

    return plugins.load("buzzer.tasks", make, taken)


def fields_of(entry: EntryPoint) -> dict[str, Any]:
    """The fields of a plug-in's task or model. The entry point names a mapping, the path of a YAML file, a `TaskConfig` or a `ModelConfig`."""
    value = entry.load()
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, str | Path):
        import yaml

        value = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
    if not isinstance(value, Mapping):
        raise UnsupportedError(
            f"{entry.value} is neither a mapping nor the path of a YAML file with a mapping"
        )
    return {"name": entry.name, **value}


def validated(kind: type[C], entry: EntryPoint, fields: dict[str, Any]) -> C:
    """A `kind` with these fields. Raises UnsupportedError for invalid fields, or if the name is not that of the entry point."""
    if fields["name"] != entry.name:
        raise UnsupportedError(f"{entry.value} has the name {fields['name']!r}")
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise UnsupportedError(f"{entry.value}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """Pydantic's first message: the field and what is wrong with it."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def with_plugins(task: TaskConfig) -> TaskConfig:
    """The task with the engines of plug-ins, if it uses engines, and with the backends of plug-ins that run one of its kinds of model."""
    engines = [] if task.engines == [NO_ENGINE] else [*frames.plugin_engines()]
    backends = [name for kind in task.kinds for name in plugin_backends_for(kind)]
    more = {"engines": [*task.engines, *engines], "backends": [*task.backends, *backends]}
    return task.model_copy(update={field: list(dict.fromkeys(names)) for field, names in more.items()})


def plugin_backends_for(kind: infer.Kind) -> list[str]:
    """The backends of plug-ins that run a kind of model."""
    return [name for name, plugin in infer.plugin_backends().items() if kind in plugin.value.runs]


def read_task(name: str) -> dict[str, Any]:
    """The fields of a task's file in configs/tasks/, including those of its `base`."""
    return with_base(dict(configs.load_yaml(f"tasks/{name}.yaml")))


def with_base(fields: dict[str, Any]) -> dict[str, Any]:
    """A task's fields; those that it lacks are taken from its `base`, a task of configs/tasks/. Parameters are merged key by key."""
    if (base := fields.pop("base", None)) is None:
        return fields
    inherited = read_task(base)
    return inherited | fields | {"params": inherited["params"] | fields.get("params", {})}


def tasks_and_aliases() -> dict[str, TaskConfig]:
    """All tasks, each by its name and by its aliases."""
    return {alias: task for task in tasks().values() for alias in (*task.aliases, task.name)}


def task(name: str) -> TaskConfig:
    """The task with this name or alias. Raises UsageError for an unknown name; the hint suggests the nearest one."""
    by_name = tasks_and_aliases()
    if name not in by_name:
        raise unknown_name("task", name, by_name)
    return by_name[name]


class ModelConfig(BaseModel):
    """The descriptor of a model that `buzzer bench` can time: an entry of configs/models.yaml, or that of a plug-in."""

    model_config = ConfigDict(extra="forbid")
    name: str
    summary: str
    entry: str  # module:attr of the ModelProvider
    backends: list[str]  # others are compared with the first
    kind: infer.Kind = "networks"  # backends of plug-ins that run this kind are added to `backends`
    tokens: bool = True  # whether rows have a length, which --seq sets
    takes_inputs: bool = False  # whether --inputs may name a file
    params: dict[str, Any] = {}


@cache
def models() -> dict[str, ModelConfig]:
    """All named models, built-in models first. Each has the backends of plug-ins that can run it."""
    named = configs.load_yaml("models.yaml")["models"]
    built_in = {name: ModelConfig(name=name, **entry) for name, entry in named.items()}
    added = {name: plugin.value for name, plugin in plugin_models().items()}
    return {name: with_plugin_backends(model) for name, model in (built_in | added).items()}


@cache
def plugin_models() -> dict[str, Plugin[ModelConfig]]:
    """The models of plug-ins by name: entry points of the group `buzzer.models`."""
    taken = configs.load_yaml("models.yaml")["models"]
    return plugins.load("buzzer.models", lambda entry: validated(ModelConfig, entry, fields_of(entry)), taken)


def with_plugin_backends(model: ModelConfig) -> ModelConfig:
    """The model with the backends of plug-ins that run its kind."""
    names = dict.fromkeys([*model.backends, *plugin_backends_for(model.kind)])
    return model.model_copy(update={"backends": list(names)})


def model(text: str) -> ModelConfig:
    """The model with this name, or of this file or folder. Raises UsageError for an unknown name; the hint suggests the nearest one."""
    if text in models():
        return models()[text]
    path, kinds = Path(text), configs.load_yaml("models.yaml")["paths"]
    kind = "folder" if path.is_dir() else path.suffix
    if kind in kinds and path.exists():
        entry = kinds[kind]
        params = dict.fromkeys(entry["params"], str(path.resolve()))
        return with_plugin_backends(ModelConfig(name=path.resolve().stem, **entry | {"params": params}))
    if path.exists():
        formats = "; ".join(f"{entry['summary']} ({suffix})" for suffix, entry in kinds.items())
        raise UsageError(
            f"{text}: not a kind of file that can be timed", f"known: {formats}; `buzzer list` names models"
        )
    if path.suffix or "/" in text:
        raise UsageError(f"{text}: no such file or folder", f"known names: {', '.join(models())}")
    raise unknown_name("model", text, models())


def backends_of_path(path: str) -> list[str]:
    """The backends of the model at a path, by its suffix; the path need not exist."""
    kinds = configs.load_yaml("models.yaml")["paths"]
    backends: list[str] = kinds.get(Path(path).suffix, kinds["folder"])["backends"]
    return backends


def precisions() -> tuple[str, ...]:
    """All precisions that backends may have."""
    return tuple(configs.load_yaml("models.yaml")["gates"])


def check_precisions(requested: Iterable[str], of_task: Iterable[str] = ()) -> None:
    """Raises UsageError for a precision that is neither one of a backend nor one of the task's precisions `of_task`."""
    names = {*precisions(), *of_task}
    for name in requested:
        if name not in names:
            raise unknown_name("precision", name, names)


def bench_gate(precision: str) -> dict[str, float]:
    """The limits of a bench run against the FP32 reference: the smallest `cosine` and the largest `error`."""
    gate: dict[str, float] = configs.load_yaml("models.yaml")["gates"][precision]
    return gate


REQUIRED = ("NAME", "generate", "check", "score", "convert")  # names in a data set's module


@dataclass(frozen=True)
class DatasetPlace:
    """The module of a data set, which is imported when it is needed, and its card."""

    module: str
    card: Path


@cache
def places() -> dict[str, DatasetPlace]:
    """All data sets by name: the folders under datasets/ that have a card, then those of plug-ins."""
    added = {name: plugin.value for name, plugin in plugin_datasets().items()}
    return built_in_datasets() | added


@cache
def built_in_datasets() -> dict[str, DatasetPlace]:
    """The folders under datasets/ that have a card."""
    cards = {card.parent.name: card for card in sorted(DATASETS.glob("*/card.md"))}
    return {name: DatasetPlace(f"buzzer.datasets.{name}", card) for name, card in cards.items()}


@cache
def plugin_datasets() -> dict[str, Plugin[DatasetPlace]]:
    """The data sets of plug-ins by name: entry points of the group `buzzer.datasets`."""

    def make(entry: EntryPoint) -> DatasetPlace:
        spec = importlib.util.find_spec(entry.value)
        if spec is None or spec.origin is None:
            raise UnsupportedError(f"no module {entry.value}")
        card = Path(spec.origin).with_name("card.md")
        if not card.is_file():
            raise UnsupportedError(f"no {card}")
        return DatasetPlace(entry.value, card)

    return plugins.load("buzzer.datasets", make, {*built_in_datasets(), *built_in_tasks()})


def datasets() -> list[str]:
    """Names of the data sets."""
    return list(places())


def dataset_name(name: str) -> str:
    """The data set with this name, or that of the task with this name or alias. Raises UsageError if there is none."""
    by_name = tasks_and_aliases()
    folder = by_name[name].dataset if name in by_name else name
    if not folder:
        raise UsageError(f"task {name} has no data set", "it makes or reads its files itself")
    if folder not in places():
        raise unknown_name("data set", name, [*places(), *tasks()])
    return folder


def dataset(name: str) -> DataSet:
    """The module of a data set, given its name or that of a task that uses it. Raises UnsupportedError if the module lacks a function."""
    name = dataset_name(name)
    module: DataSet = plugins.resolve(places()[name].module, f"data set {name}")
    if missing := [attribute for attribute in REQUIRED if not hasattr(module, attribute)]:
        raise UnsupportedError(f"data set {name} has no {missing[0]} in {places()[name].module}")
    return module


def card(name: str) -> str:
    """A data set's card: schema, terms, where to get it, how the generator works. Does not import the data set."""
    return places()[dataset_name(name)].card.read_text(encoding="utf-8")


def engines() -> tuple[str, ...]:
    """Names of all feature engines."""
    return tuple(frames.all_engines())


def backends() -> tuple[str, ...]:
    """Names of all inference backends."""
    return tuple(infer.all_backends())


def backend_pairs() -> tuple[str, ...]:
    """The pairs of backends that tasks offer, networks+trees (see `infer.split_backend`)."""
    return tuple(
        dict.fromkeys(name for task in tasks().values() for name in task.backends if infer.PAIR in name)
    )


def origins() -> dict[str, dict[str, str]]:
    """All plug-ins: kind, as in `buzzer list` -> name -> name and version of the distribution."""
    added: dict[str, Mapping[str, Plugin[Any]]] = {
        "tasks": plugin_tasks(),
        "engines": frames.plugin_engines(),
        "backends": infer.plugin_backends(),
        "models of bench": plugin_models(),
        "data sets": plugin_datasets(),
    }
    return {
        kind: {name: plugin.distribution for name, plugin in by_name.items()}
        for kind, by_name in added.items()
    }

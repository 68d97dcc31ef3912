"""Requests: what to run, as plain names, paths and numbers. The defaults are the same as on the command line.

A request is not checked when it is created. `buzzer.suite.run.resolve` and `buzzer.suite.bench.plan` turn it into a plan, and raise
`UsageError` for a wrong value. A field that takes several names takes a list or a string with commas; `"all"` means every name that the
task or model has.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, ValuesView
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, dataclass, field, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError

from buzzer.errors import UsageError, brief

Names = str | Sequence[str]
Numbers = float | Sequence[float]
Paths = str | Path | Sequence[str | Path]
Sources = (
    Paths | Sequence[Any]
)  # records, or files and folders of records; Any, because records are in a higher layer

DEFAULT_OUT = Path("results/local")


@dataclass(frozen=True)
class RunRequest:
    """Tasks to fit and run.

    tasks: empty = the default suite; "all" = every task.
    engines: feature engines; empty = all of the task that work on this machine.
    backends: inference backends; empty = all of the task that are installed.
    precisions: empty = the task's default.
    device: "cpu" or "cuda"; empty = what the engine runs on.
    budget: names of budgets, or limits such as "1c20g24h"; empty = "seed-cpu".
    data: folder of the official files; None = generated data.
    scale: share of the official size to generate; None = the task's default.
    train_scale: share of the official training rows, a sample of those of `scale`; None = all of them.
    seed: for data and training.
    rounds: each runs every variant once.
    workers: Dask workers to distribute a run over; 0 = one process.
    scheduler: address of a running Dask cluster; empty = none.
    params: task parameters; strings are read as YAML.
    on_unmet_budget: "fail" or "warn", if the machine has less than the budget.
    resume: skip the runs that have an `ok` record, and go on with an interrupted one of a resumable task.

    >>> RunRequest("recsys2021", engines=["cudf"], budget="seed-cpu")  # doctest: +ELLIPSIS
    RunRequest(tasks='recsys2021', engines=['cudf'], ..., budget='seed-cpu', ...)
    >>> RunRequest("booking", engines="pandas,polars", scale=0.01, params={"epochs": 2}).rounds
    1
    """

    tasks: Names = ()
    engines: Names = ()
    backends: Names = ()
    precisions: Names = ()
    device: str = ""
    budget: Names = ""
    data: str | Path | None = None
    scale: float | None = None
    train_scale: float | None = None
    seed: int = 0
    rounds: int = 1
    workers: int = 0
    scheduler: str = ""
    params: Mapping[str, object] = field(default_factory=dict)
    on_unmet_budget: str = "fail"
    resume: bool = False


@dataclass(frozen=True)
class CompareRequest:
    """One task on several engines, backends, devices, budgets and scales, in interleaved rounds.

    The fields that are not listed here mean the same as those of RunRequest.

    task: its name.
    records: records, or files and folders of records. With them nothing is run: those that the other fields name are compared.
    precisions: empty = fp32; with `records`, those of the records.
    devices: "cpu", "cuda" or both; empty = what the engine runs on.
    budget: empty = "seed-cpu", and the same limits on all cores of this machine.
    scales: shares of the official size to generate; empty = the task's default.
    train_scale: share of the official training rows, a sample of those of each scale; None = all of them.
    full: scale of the full job, to which times are projected.
    full_budget: budget of the full job; empty = that of each variant.
    against: older records to compare with, or files and folders of them.
    fail_if: thresholds such as "wall:5%": how much worse than `against` a figure may be.
    price: US dollars per hour, as numbers or names of configs/prices.yaml: "cpu=0.36,cuda=3.7".

    >>> CompareRequest("booking", scales=[0.01, 0.02, 0.05]).rounds
    5
    """

    task: str
    records: Sources = ()
    engines: Names = ()
    backends: Names = ()
    precisions: Names = ()
    devices: Names = ()
    budget: Names = ""
    scales: Numbers = ()
    train_scale: float | None = None
    data: str | Path | None = None
    seed: int = 0
    rounds: int = 5
    params: Mapping[str, object] = field(default_factory=dict)
    full: float = 1.0
    full_budget: str = ""
    against: Sources = ()
    fail_if: Names = ()
    price: str = ""
    on_unmet_budget: str = "fail"
    resume: bool = False


@dataclass(frozen=True)
class BenchRequest:
    """One model to time on inference backends and precisions, without a task.

    model: a name of `buzzer list`, a file or a model folder.
    backends, precisions: "all" = every one that the model has.
    batches: rows per run.
    seq: tokens per row; with packing "packed", tokens per run.
    lengths: "fixed", or "real" for rows as long as real sentences.
    packings: "padded"; for real lengths also "sorted" and "packed".
    inputs: different batches to rotate through, or a file with the inputs; None = 16 batches, or fewer if they are large.
    count: least timed runs per round.
    seconds: least seconds of warm runs, and of cold runs, per round.
    at_most: seconds after which a round ends, but not before 4 runs.
    rounds: over all variants; every second round is in reverse order.
    scenario: MLPerf's "single-stream", "offline" or "server"; empty = runs one after another.
    min_duration: seconds that LoadGen runs.
    qps: queries per second of the server scenario; 0 = find the highest rate that keeps the bound.
    bound: latency bound of the server scenario in ms.
    loadgen_seeds: for the library, the samples, the schedule.
    mlperf: MLPerf's name of a model ("bert"), whose settings replace `min_duration`, `bound` and `loadgen_seeds`.
    device: "cpu" or "cuda".
    budget: a name, or limits such as "1c20g24h".
    seed: for random weights and inputs.
    resume: skip the runs that have an `ok` record.

    >>> BenchRequest("minilm-l6", backends=["onnxruntime"], batches=[1, 32]).seq
    128
    """

    model: str | Path
    backends: Names = "all"
    precisions: Names = "all"
    batches: int | Sequence[int] = 1
    seq: int = 128
    lengths: str = "fixed"
    packings: Names = "padded"
    inputs: int | str | Path | None = None
    count: int = 50
    seconds: float = 2.0
    at_most: float = 120.0
    rounds: int = 2
    scenario: str = ""
    min_duration: float = 600.0
    qps: float = 0.0
    bound: float = 130.0
    loadgen_seeds: Sequence[int] = (0, 0, 0)
    mlperf: str = ""
    device: str = "cpu"
    budget: str = "unlimited"
    seed: int = 0
    resume: bool = False


@dataclass(frozen=True)
class FrontierRequest:
    """A BERT to run in every precision, and cut to fewer layers in FP32 and INT8: accuracy against latency.

    model: "bert" (MiniLM-L6), or a Hugging Face BERT folder with a tokenizer.
    backends, precisions: "all" = every one that the task has.
    rounds: timed runs of each variant.
    device: "cpu" or "cuda".
    budget: names of budgets, or limits such as "1c20g24h".
    data: folder of the labelled sentences; None = generated data.
    seed: for data and training.
    resume: skip the runs that have an `ok` record.

    >>> FrontierRequest(precisions=["fp32", "int8"]).rounds
    2
    """

    model: str | Path = "bert"
    backends: Names = "all"
    precisions: Names = "all"
    rounds: int = 2
    device: str = "cpu"
    budget: Names = "unlimited"
    data: str | Path | None = None
    seed: int = 0
    resume: bool = False


R = TypeVar("R", bound=RunRequest | CompareRequest | BenchRequest | FrontierRequest)
# The types of fields in words, for messages.
TYPES: Mapping[Any, str] = {
    str: "a text",
    bool: "True or False",
    int: "a whole number",
    int | None: "a whole number",
    int | str | Path | None: "a whole number or a path",
    float: "a number",
    float | None: "a number",
    str | Path: "a name or a path",
    str | Path | None: "a path",
    Names: "a name or a list of names",
    Numbers: "a number or a list of numbers",
    Sources: "records, a path or a list of paths",
    int | Sequence[int]: "a whole number or a list of whole numbers",
    Sequence[int]: "a list of whole numbers",
    Mapping[str, object]: "a mapping of names to values",
}
# Of fields with paths. An empty text would mean the current folder.
OF_PATHS = (str | Path, str | Path | None, int | str | Path | None, Sources)


def checked(kind: type[R], request: object) -> R:
    """The request, with values of the types of its fields, to which NumPy numbers and the like are converted.

    Raises UsageError for anything but a request of this kind, and for a value that cannot be converted.

    >>> checked(CompareRequest, CompareRequest("booking", scales=["0.1", 1])).scales
    [0.1, 1.0]
    """
    if not isinstance(request, kind):
        hint = f"write buzzer.{kind.__name__}({request!r})" if isinstance(request, str) else ""
        raise UsageError(
            f"{brief(request)} is not a {kind.__name__}", hint or f"make one: help(buzzer.{kind.__name__})"
        )
    values = {}
    for name, wanted in get_type_hints(kind).items():
        value = getattr(request, name)
        try:
            values[name] = TypeAdapter(wanted).validate_python(value)
        except ValidationError:
            raise UsageError(
                f"{kind.__name__}: {name} is {brief(value)}, not {TYPES[wanted]}",
                "correct this field of the request",
            ) from None
        if wanted in OF_PATHS and "" in each(values[name]):
            raise UsageError(
                f"{kind.__name__}: {name} is ''", "name a file or folder, or leave the field out"
            )
    return replace(request, **values)


def given(request: object, fields: Iterable[str]) -> list[str]:
    """Those of a request's optional fields that are not left at their default.

    >>> given(CompareRequest("booking", rounds=3, seed=0), ["seed", "rounds"])
    ['rounds']
    """
    defaults = {
        f.name: f.default if f.default_factory is MISSING else f.default_factory()
        for f in dataclass_fields(cast(Any, request))
    }
    return [name for name in fields if plain(getattr(request, name)) != plain(defaults[name])]


def plain(value: object) -> object:
    """The value; a list as a tuple, because both are allowed."""
    return tuple(value) if isinstance(value, list) else value


def option_of(field: str) -> str:
    """The command line's option for a field of a request.

    >>> option_of("train_scale"), option_of("params")
    ('--train-scale', '--set')
    """
    return "--set" if field == "params" else f"--{field.replace('_', '-')}"


def names(value: Names) -> list[str]:
    """The names in a list, in a string with commas, or in a list of such strings, each once.

    >>> names("pandas, polars"), names(["cudf"]), names(["pandas,polars", "cudf", "pandas"]), names("")
    (['pandas', 'polars'], ['cudf'], ['pandas', 'polars', 'cudf'], [])
    """
    return list(dict.fromkeys(parts(value)))


def parts(value: Names) -> list[str]:
    """The texts between commas in a string, or in the strings of a list.

    >>> parts("0, 0,1")
    ['0', '0', '1']
    """
    texts: Iterable[str] = [value] if isinstance(value, str) else value
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def paths(value: Paths) -> list[Path]:
    """The paths in a list, or the one given alone. Raises UsageError for what is not a path.

    >>> paths("results")
    [PosixPath('results')]
    """
    return [path(part) for part in each(value)]


def path(value: object) -> Path:
    """The path. Raises UsageError for what is not one, and for an empty text, which would mean the current folder."""
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or "\0" in text:
        raise UsageError(f"{brief(value)} is not a path", "give a text or a pathlib.Path")
    if not text:
        raise UsageError("a path is empty", "name a file or folder; `.` is the current folder")
    return Path(text)


def each(values: object) -> list[Any]:
    """The values of a list, tuple, set, iterator or the like, or the one given alone: a text, a record, a data frame.

    >>> each("results"), each(("a", "b"))
    (['results'], ['a', 'b'])
    """
    several = isinstance(values, (Sequence, AbstractSet, ValuesView, Iterator)) and not isinstance(
        values, str
    )
    return list(cast(Iterable[Any], values)) if several else [values]


def numbers(value: Numbers) -> list[float]:
    """The numbers in a list, each once, or a single number.

    >>> numbers(0.1), numbers([1, 2, 1])
    ([0.1], [1.0, 2.0])
    """
    return list(dict.fromkeys(map(float, value))) if isinstance(value, Sequence) else [float(value)]

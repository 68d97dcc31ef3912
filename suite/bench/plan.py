"""What `buzzer bench` runs and in which order, and the table of what came out."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from buzzer.engine import infer
from buzzer.engine.infer.onnx import graphs
from buzzer.errors import BuzzerError, DataError, UnsupportedError, unknown_name
from buzzer.suite.budget import Budget
from buzzer.suite.registry import NO_ENGINE, ModelConfig, TaskConfig, Variant
from buzzer.suite.run.plan import Run

ENTRY = "buzzer.suite.bench.protocol:BENCH"
REFERENCE = "torch_eager"
ANY = "any"  # precision of a record of a backend that is not here
WEIGHTS = (".json", ".safetensors", ".bin", ".txt")  # files of a model folder
INPUTS, LEAST_INPUTS = 16, 4  # different batches: most, and least of large ones
LARGE = 65536  # tokens (rows, where they have none) of all inputs together that large batches may have


@dataclass(frozen=True)
class Choice:
    """What was asked of one model."""

    model: ModelConfig
    backends: Sequence[str]
    precisions: Sequence[str]  # empty = every one that a backend has
    device: str
    budget: Budget
    seed: int
    rounds: int
    params: dict[str, Any]  # batch, seq, lengths, ...: see suite/bench/protocol.py


def inputs_of(batch: int, seq: int) -> int:
    """How many batches to rotate through where nobody says: each has an FP32 answer, which for large ones takes its time and memory."""
    return min(INPUTS, max(LEAST_INPUTS, LARGE // (batch * max(seq, 1))))


def task_of(choice: Choice) -> TaskConfig:
    """The model as the runner takes it."""
    return TaskConfig(
        name=choice.model.name,
        summary=choice.model.summary,
        entry=ENTRY,
        dataset=NO_ENGINE,
        engines=[NO_ENGINE],
        backends=choice.model.backends,
        reference=Variant(engine=NO_ENGINE, backend=REFERENCE),
        metric="cosine",
        tolerance=0.0,  # bench runs have gates of their own: registry.bench_gate
        params={
            "target": choice.model.entry,
            "model": choice.model.params,
            **content(choice.model),
            **choice.params,
        },
    )


def content(model: ModelConfig) -> dict[str, str]:
    """`model_hash` of a model that a path names, so that another file of the same name is another model; nothing for a named one."""
    paths = [Path(value) for value in model.params.values() if Path(str(value)).is_absolute()]
    return {"model_hash": hash_of(paths[0])} if paths else {}


@functools.cache
def hash_of(path: Path) -> str:
    """First 12 hex digits of the sha256 of a model's files. Raises DataError for what is none."""
    if path.suffix == ".onnx" and path.is_file():
        files = graphs.files(path)
    else:
        files = [path] if path.is_file() else [p for p in sorted(path.iterdir()) if p.suffix in WEIGHTS]
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        except OSError as error:
            raise DataError(f"{file}: {error.strerror}", f"{path} needs it") from error
    return digest.hexdigest()[:12]


def reference_run(choice: Choice) -> Run:
    """The job that computes the right answers and the roof."""
    task = task_of(choice)
    return Run(task, "fit", NO_ENGINE, REFERENCE, "fp32", choice.device, choice.budget, 1.0, choice.seed)


def backends_of(model: ModelConfig, asked: Sequence[str]) -> list[str]:
    """The names to run: those asked for, or all that the model names."""
    if list(asked) == ["all"]:
        return list(model.backends)
    for name in asked:
        infer.info(name)
        if name not in model.backends:
            raise unknown_name(f"backend of {model.name}", name, model.backends)
    return list(asked)


@dataclass(frozen=True)
class Planned:
    """A run, or why it cannot be one."""

    run: Run
    problem: BuzzerError | None = None


def plan(choice: Choice) -> list[Planned]:
    """Rounds outermost, every other one in reverse, so that drift hits all alike. What cannot run comes once."""
    file = file_of(choice.model)
    variants = [(b, *found) for b in choice.backends for found in precisions_of(b, choice.precisions, file)]
    rounds = []
    for repeat in range(choice.rounds):
        order = variants if repeat % 2 == 0 else variants[::-1]
        rounds += [(repeat, *v) for v in order if repeat == 0 or v[2] is None]
    return [Planned(run_of(choice, b, p, repeat), problem) for repeat, b, p, problem in rounds]


def run_of(choice: Choice, backend: str, precision: str, repeat: int) -> Run:
    task = task_of(choice)
    return Run(
        task, "bench", NO_ENGINE, backend, precision, choice.device, choice.budget, 1.0, choice.seed, repeat
    )


def file_of(model: ModelConfig) -> Path | None:
    """The ONNX file that a model is."""
    paths = [Path(str(value)) for value in model.params.values()]
    return next((path for path in paths if path.is_absolute() and path.suffix == ".onnx"), None)


def tokens_of(model: ModelConfig, seq: int) -> int:
    """Tokens a row: `seq`, or 0 for a model whose rows have no such axis."""
    file = file_of(model)
    return seq if model.tokens and (file is None or graphs.has_tokens(file)) else 0


def precisions_of(
    backend: str, asked: Sequence[str], file: Path | None = None
) -> list[tuple[str, BuzzerError | None]]:
    """Precisions to run on a backend, each with the reason why it cannot be. file: of the model, where it is an ONNX file."""
    try:
        offered = infer.precisions(infer.load(backend), file)
    except UnsupportedError as error:
        return [(name, error) for name in (asked or [ANY])]
    if not asked:
        return [(name, None) for name in offered]
    missing = f"it has: {', '.join(offered)}"
    return [
        (name, None if name in offered else UnsupportedError(f"{backend} has no precision {name}", missing))
        for name in asked
    ]

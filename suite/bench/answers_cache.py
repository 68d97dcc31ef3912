"""What `buzzer bench` keeps in the cache folder: right answers and quantised checkpoints, each made once for a model and its sizes.

The key holds all that fixes them: the model's parameters and files, its source code, seed, sizes, device and torch's version.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from buzzer import caches
from buzzer.engine.infer import Array, cost
from buzzer.engine.infer.cost import Cost
from buzzer.errors import DataError
from buzzer.models.api import bench as api_bench
from buzzer.models.api.bench import Batch, BenchModel, BenchSpec, ModelProvider, stamp
from buzzer.models.api.context import RunContext
from buzzer.suite.run import manifest

FACTS = "facts.json"


@dataclass(frozen=True)
class Answers:
    """The right outputs of every input, and what `fit` learned of the model. fingerprint: sha256 of the inputs."""

    expected: list[dict[str, Array]]  # of the batches, then of the unseen ones
    fingerprint: str
    source: str
    notes: tuple[str, ...]
    cost: Cost | None  # of one run on the first input


def folder(job: RunContext, target: ModelProvider, ask: BenchSpec) -> Path:
    """Of one model at one size; in the call's own folder for a target that cannot say what fixes it."""
    if (fixed := target.identity(ask)) is None:
        return job.work / "kept"
    sizes = [ask.batch, ask.seq, ask.inputs, ask.lengths, ask.packing, job.device]
    code = stamp([Path(p) for p in (__file__, cost.__file__, api_bench.__file__)])
    return job.data / f"{job.task}-{digest([ask.params, ask.seed, sizes, fixed, code, version()])}"


def version() -> str:
    """torch's, without importing it."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""


def digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def every_input(loaded: BenchModel) -> list[Batch]:
    """Those of timed runs, then the unseen ones."""
    return [*loaded.batches, *(batch for _, batch in loaded.unseen)]


def fingerprint(loaded: BenchModel) -> str:
    """sha256 over names and values of all inputs."""
    found = hashlib.sha256()
    for batch in every_input(loaded):
        for name, array in sorted(batch.items()):
            found.update(name.encode() + array.tobytes())
    return found.hexdigest()


def keep(folder: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a folder, whole or not at all, with a manifest; another process may be faster, then its folder stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        write(aside)
        manifest.seal(aside)
        try:
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def is_kept(folder: Path) -> bool:
    """Whether a folder is there as it was written; a damaged one is removed."""
    problem = manifest.problem(folder)
    if problem and os.path.lexists(folder):
        caches.discard(folder, problem)
    return not problem


def write_answers(answers: Answers, folder: Path) -> None:
    def write(aside: Path) -> None:
        aside.mkdir()
        for index, outputs in enumerate(answers.expected):
            np.savez(aside / f"{index}.npz", **outputs)  # type: ignore[arg-type]
        facts = asdict(replace(answers, expected=[])) | {"expected": len(answers.expected)}
        (aside / FACTS).write_text(json.dumps(facts))

    keep(folder / "answers", write)


def read_answers(folder: Path) -> Answers | None:
    """None where there are none that are as they were written."""
    place = folder / "answers"
    if not is_kept(place):
        return None
    facts = json.loads((place / FACTS).read_text())
    facts["expected"] = [dict(np.load(place / f"{i}.npz")) for i in range(facts["expected"])]
    facts["cost"] = None if facts["cost"] is None else Cost(**facts["cost"])
    return Answers(**facts | {"notes": tuple(facts["notes"])})


def not_finite(expected: Sequence[Mapping[str, Array]]) -> str:
    """The first output that holds NaN or an infinity, in words; empty where all are finite."""
    for index, outputs in enumerate(expected):
        for name, array in outputs.items():
            if array.dtype.kind in "fc" and not np.isfinite(array).all():
                return f"output {name}, input {index}"
    return ""


def check_inputs(answers: Answers, loaded: BenchModel, folder: Path) -> None:
    """Raises DataError unless the answers are those of these inputs."""
    if answers.fingerprint != fingerprint(loaded):
        raise DataError(f"{folder}: the right answers are of other inputs", "delete it: it is made anew")

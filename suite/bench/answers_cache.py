"""The cache of `buzzer bench`: reference outputs and quantised checkpoints, computed once for each model and its sizes.

The key contains everything that they depend on: the model's parameters and files, its source code, seed, sizes, device and torch's version.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from buzzer import manifest
from buzzer.engine.infer import Array, cost
from buzzer.engine.infer.cost import Cost
from buzzer.errors import DataError
from buzzer.models.api import bench as api_bench
from buzzer.models.api.bench import Batch, BenchModel, BenchSpec, ModelProvider, stamp
from buzzer.models.api.context import RunContext
from buzzer.suite.bench import identity

FACTS = "facts.json"


@dataclass(frozen=True)
class Answers:
    """The reference outputs of a model, and facts about it."""

    expected: list[dict[str, Array]]  # outputs of each input: first the batches, then the unseen inputs
    fingerprint: str  # sha256 of the inputs
    model_hash: str  # of the model that computed them (suite/bench/identity.py)
    source: str  # where the inputs come from: "official" or "generated"
    notes: tuple[str, ...]
    cost: Cost | None  # of one run on the first input


def folder(context: RunContext, provider: ModelProvider, spec: BenchSpec) -> Path:
    """The cache folder of one model at one size. A provider without an identity gets a folder inside the run's own folder."""
    if (identity := provider.identity(spec)) is None:
        return context.work / "cached"
    sizes = [spec.batch, spec.seq, spec.inputs, spec.lengths, spec.packing, context.device]
    sizes += [context.params.get("inputs_hash", "")]
    code = stamp([Path(p) for p in (__file__, cost.__file__, api_bench.__file__)])
    key = digest([spec.params, spec.seed, sizes, identity, code, torch_version()])
    return context.data / f"{context.task}-{key}"


def torch_version() -> str:
    """The version of torch, without importing it; "" if it is not installed."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""


def digest(facts: Any) -> str:
    """First 16 hex digits of the sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def every_input(model: BenchModel) -> list[Batch]:
    """All inputs: those of the timed runs, then the unseen ones."""
    return [*model.batches, *(batch for _, batch in model.unseen)]


def fingerprint(model: BenchModel) -> str:
    """The sha256 of the names and values of all inputs."""
    sha = hashlib.sha256()
    for batch in every_input(model):
        for name, array in sorted(batch.items()):
            sha.update(name.encode() + array.tobytes())
    return sha.hexdigest()


def write_answers(answers: Answers, folder: Path) -> None:
    """Save the reference outputs under a cache folder."""

    def write(aside: Path) -> None:
        aside.mkdir()
        for index, outputs in enumerate(answers.expected):
            np.savez(aside / f"{index}.npz", **outputs)  # type: ignore[arg-type]
        facts = asdict(replace(answers, expected=[])) | {"expected": len(answers.expected)}
        (aside / FACTS).write_text(json.dumps(facts))

    manifest.save(folder / "answers", write)


def read_answers(folder: Path) -> Answers | None:
    """The reference outputs in a cache folder; None if they do not exist or are damaged."""
    answers = folder / "answers"
    if not manifest.is_whole(answers):
        return None
    facts = json.loads((answers / FACTS).read_text())
    facts["expected"] = [dict(np.load(answers / f"{i}.npz")) for i in range(facts["expected"])]
    facts["cost"] = None if facts["cost"] is None else Cost(**facts["cost"])
    return Answers(**facts | {"notes": tuple(facts["notes"])})


def not_finite(expected: Sequence[Mapping[str, Array]]) -> str:
    """The first output that contains NaN or an infinity, in words; "" if all are finite."""
    for index, outputs in enumerate(expected):
        for name, array in outputs.items():
            if array.dtype.kind in "fc" and not np.isfinite(array).all():
                return f"output {name}, input {index}"
    return ""


def check_origin(answers: Answers, model: BenchModel, folder: Path) -> None:
    """Raises DataError unless the reference outputs are of these inputs and of this model."""
    hint = "delete the folder; it is made again"
    if answers.fingerprint != fingerprint(model):
        raise DataError(f"{folder}: the reference outputs are of other inputs", hint)
    if answers.model_hash != (loaded := identity.of_model(model)):
        raise DataError(
            f"{folder}: the reference outputs are of model {answers.model_hash}, not {loaded}", hint
        )

"""The command that does a recorded run again, and the one that makes its reference."""

import json
import shlex
from collections.abc import Iterable

from buzzer.suite import registry
from buzzer.suite.records.gate import lacks_reference
from buzzer.suite.records.schema import Record
from buzzer.suite.registry import NO_ENGINE
from buzzer.suite.run.plan import device_of

FOLDER = "FOLDER"  # stands for the folder of the official files, which no record names


def command(r: Record) -> str:
    """The command that does this run again, with the fit that it needs. A path of official files or of a model file is not in a record."""
    return bench_command(r) if r.job == "bench" else run_command(r, r.engine, r.backend)


def run_command(r: Record, engine: str, backend: str) -> str:
    """The command for a run on the same data with the same parameters, with this engine and backend."""
    words = ["buzzer", "run", r.task]
    words += [] if engine == NO_ENGINE else ["--engine", engine]
    words += ["--backend", backend, "--precision", r.precision]
    words += ["--device", r.device] if r.device != device_of(engine, None) else []
    words += ["--budget", r.budget.name] if r.job != "fit" else []
    words += ["--data", FOLDER] if r.data_source == "official" else ["--scale", f"{r.scale:g}"]
    words += [] if r.train_scale is None else ["--train-scale", f"{r.train_scale:g}"]
    words += ["--seed", str(r.seed)] if r.seed else []
    for name, value in registry.changed_params(r.task, r.config).items():
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def bench_command(r: Record) -> str:
    """The command for a run of `buzzer bench` with the same sizes."""
    words = ["buzzer", "bench", r.task, "--backend", r.backend, "--precision", r.precision]
    words += ["--device", r.device] if r.device != "cpu" else []
    words += ["--batch", str(r.bench.batch), "--seq", str(r.bench.seq)] if r.bench else []
    return shlex.join(words)


def references(records: Iterable[Record]) -> list[str]:
    """For timed runs that are not ranked because their reference is missing: a line with the command that makes it."""
    lines = []
    for r in filter(lacks_reference, records):
        wanted = registry.task(r.task).reference
        engine = "" if wanted.engine == NO_ENGINE else f"{wanted.engine} "
        lines.append(
            f"not ranked yet: scores of {r.task} are compared with those of {engine}{wanted.backend} fp32; run it: "
            + reference_command(r, wanted)
        )
    return list(dict.fromkeys(lines))


def reference_command(r: Record, wanted: registry.Variant) -> str:
    """The command for the run of the reference with whose scores this run is compared. It needs the same fit."""
    device = device_of(wanted.engine, None) if (r.fit_id or "cpu-").startswith("cpu-") else r.device
    reference = r.model_copy(update={"precision": "fp32", "device": device})
    return run_command(reference, wanted.engine, wanted.backend)

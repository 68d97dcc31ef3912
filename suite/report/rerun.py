"""The command that does a recorded run again, and the one that makes its reference."""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path

from buzzer.models.api.context import GIVEN
from buzzer.suite import registry
from buzzer.suite.records.gate import lacks_reference
from buzzer.suite.records.schema import Record
from buzzer.suite.registry import NO_ENGINE
from buzzer.suite.requests import BenchRequest
from buzzer.suite.run.plan import device_of

FOLDER = "FOLDER"  # stands for the folder of the files of --data, which no record names
DEFAULTS = BenchRequest("")
# Options of `buzzer bench` that records have under the same name, and their defaults.
BENCH_OPTIONS = {
    "lengths": DEFAULTS.lengths,
    "packing": DEFAULTS.packings,
    "scenario": DEFAULTS.scenario,
    "mlperf": DEFAULTS.mlperf,
    "qps": DEFAULTS.qps,
    "bound": DEFAULTS.bound,
    "min_duration": DEFAULTS.min_duration,
    "loadgen_seeds": list(DEFAULTS.loadgen_seeds),
    "count": DEFAULTS.count,
    "seconds": DEFAULTS.seconds,
    "at_most": DEFAULTS.at_most,
}


def command(r: Record) -> str:
    """The command that does this run again, with the fit that it needs. The folder of --data is not in a record."""
    return bench_command(r) if r.job == "bench" else run_command(r, r.engine, r.backend)


def run_command(r: Record, engine: str, backend: str) -> str:
    """The command for a run on the same data with the same parameters, with this engine and backend."""
    words = ["buzzer", "run", r.task]
    words += [] if engine == NO_ENGINE else ["--engine", engine]
    words += ["--backend", backend, "--precision", r.precision]
    words += ["--device", r.device] if r.device != device_of(engine, None) else []
    words += ["--budget", r.budget.name] if r.job != "fit" else []
    given = r.data_source == "official" or GIVEN in r.notes
    words += ["--data", FOLDER] if given else ["--scale", f"{r.scale:g}"]
    words += [] if given or r.train_scale is None else ["--train-scale", f"{r.train_scale:g}"]
    words += ["--seed", str(r.seed)] if r.seed else []
    for name, value in registry.changed_params(r.task, r.config).items():
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def bench_command(r: Record) -> str:
    """The command for a run of `buzzer bench` with the same sizes."""
    words = ["buzzer", "bench", model_of(r), "--backend", r.backend, "--precision", r.precision]
    words += ["--device", r.device] if r.device != "cpu" else []
    words += ["--budget", r.budget.name] if r.budget.name != DEFAULTS.budget else []
    words += ["--batch", str(r.config["batch"])] if "batch" in r.config else []
    words += ["--seq", str(r.config["seq"])] if r.config.get("seq") else []
    words += ["--inputs", str(r.config["inputs_file"])] if "inputs_file" in r.config else []
    for name, default in BENCH_OPTIONS.items():
        value = r.config.get(name, default)
        words += [f"--{name.replace('_', '-')}", as_word(value)] if value != default else []
    words += ["--seed", str(r.seed)] if r.seed else []
    return shlex.join(words)


def model_of(r: Record) -> str:
    """The name of a bench's model, or the path of its file or folder."""
    values = r.config["model"].values() if isinstance(r.config.get("model"), dict) else ()
    return next((str(value) for value in values if Path(str(value)).is_absolute()), r.task)


def as_word(value: object) -> str:
    """The value of an option of `buzzer bench`."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


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

"""Estimates how long planned runs take: the median of past runs of the same job on the same machine."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from statistics import median
from typing import Any

from buzzer.suite import registry
from buzzer.suite.records import machine
from buzzer.suite.records.schema import Record
from buzzer.suite.run.plan import Run


class Estimates:
    """The wall seconds of past runs, scoring included."""

    def __init__(self, records: Iterable[Record]) -> None:
        here = machine.describe(machine.machine())
        self._seconds: dict[Hashable, list[float]] = defaultdict(list)
        for r in records:
            if r.outcome == "ok" and machine.describe(r.machine) == here:
                self._seconds[key_of_record(r)].append(r.wall_s + (r.score_s or 0.0))

    def seconds(self, run: Run) -> float | None:
        """The expected seconds of a run; None if no past run had the same job, variant, cores, parameters and size."""
        past = self._seconds.get(key_of_run(run))
        return median(past) if past else None


def key_of_record(r: Record) -> Hashable:
    """The properties of a run on which its time depends most."""
    variant = r.task, r.job, r.engine, r.backend, r.precision, r.device, r.cluster
    return *variant, r.budget.cores, r.scale, r.train_scale, without_hash(r.config)


def key_of_run(run: Run) -> Hashable:
    """The same properties of a planned run."""
    variant = run.task.name, run.job, run.engine, run.backend, run.precision, run.device, run.cluster
    return *variant, run.budget.cores, run.scale, run.train_scale, without_hash(run.task.params)


def without_hash(params: Mapping[str, Any]) -> str:
    """The hash of parameters without that of a model's weights: time depends little on them, and before a run they may not be known."""
    return registry.params_hash({name: value for name, value in params.items() if name != "model_hash"})

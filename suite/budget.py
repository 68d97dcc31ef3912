"""Budgets: how many cores, how much memory and how much time a run may use.

A budget is given as a name from configs/budgets.yaml, or as cores, memory and time: `1c20g24h`, `2c512m90s`. The memory of each GPU
may follow: `8c64g1h-gpu40g`. Memory units are decimal (`20g` = 20 * 10**9 bytes); `gi` and `mi` are binary.
"""

import os
import re
from dataclasses import asdict, dataclass

import psutil

from buzzer.configs import load_yaml
from buzzer.engine import device
from buzzer.errors import UsageError, unknown_name
from buzzer.suite.words import counted

_PATTERN = re.compile(
    r"(?P<cores>\d+)c(?P<memory>\d+(?:\.\d+)?)(?P<memory_unit>[kmgt]i?)b?(?P<time>\d+(?:\.\d+)?)(?P<time_unit>[smhd])"
    r"(-gpu(?P<gpu>\d+(?:\.\d+)?)(?P<gpu_unit>[kmgt]i?)b?)?"
)
_BYTES = {f"{p}{i}": b**e for e, p in enumerate("kmgt", 1) for i, b in (("", 1000), ("i", 1024))}
LONGEST = 100  # most characters of a budget
LARGEST = 1 << 63  # upper bound of the integers in a record's JSON
MOST_CORES, MOST_S = 1 << 16, 1e9  # upper bounds of cores and of times in seconds
LEAST_WALL_S = 1e-3  # lower bound of the wall time of a process
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Budget:
    """The limits of one run; None = not limited."""

    name: str
    cores: int | None = None
    memory_bytes: int | None = None
    time_s: float | None = None
    gpu_memory_bytes: int | None = None  # of each GPU

    def as_dict(self) -> dict[str, str | float | None]:
        """The fields by name."""
        return asdict(self)


UNLIMITED = Budget("unlimited")


def parse(text: str) -> Budget:
    """The budget of a text such as `1c20g24h`. Raises UsageError if it is malformed, if a part is zero, or if no machine can have it.

    >>> parse("2c512m90s")
    Budget(name='2c512m90s', cores=2, memory_bytes=512000000, time_s=90.0, gpu_memory_bytes=None)
    """
    match = _PATTERN.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(
            f"budget {text!r} is neither a name nor of the form CORES c MEMORY TIME",
            "write it like 1c20g24h, 2c512m90s or 8c64g1h-gpu40g; `buzzer list` shows the named ones",
        )
    part = match.groupdict()
    if len(text) > LONGEST:
        raise UsageError(f"budget {text[:LONGEST]}... is beyond any machine", "write it like 1c20g24h")
    cores = int(part["cores"])
    memory = int(float(part["memory"]) * _BYTES[part["memory_unit"]])
    time_s = float(part["time"]) * _SECONDS[part["time_unit"]]
    gpu = int(float(part["gpu"]) * _BYTES[part["gpu_unit"]]) if part["gpu"] else None
    if not (cores and memory and time_s >= LEAST_WALL_S) or gpu == 0:
        raise UsageError(f"a part of budget {text!r} is zero", "every part must be above zero: 1c20g24h")
    if cores > MOST_CORES or max(memory, gpu or 0) >= LARGEST or time_s > MOST_S:
        raise UsageError(f"budget {text!r} is beyond any machine", "write it like 1c20g24h")
    return Budget(text, cores, memory, time_s, gpu)


def named() -> dict[str, Budget]:
    """The budgets of configs/budgets.yaml, by name."""
    return {
        name: Budget(name, *astuple(parse(spec["limits"]))) if spec["limits"] else Budget(name)
        for name, spec in load_yaml("budgets.yaml").items()
    }


def astuple(budget: Budget) -> tuple[int | None, int | None, float | None, int | None]:
    """Cores, bytes of memory, seconds and bytes of GPU memory."""
    return budget.cores, budget.memory_bytes, budget.time_s, budget.gpu_memory_bytes


def resolve(text: str) -> Budget:
    """The budget with this name, or of a text such as `1c20g24h`. Raises UsageError; the hint has the nearest known name."""
    budgets = named()
    if text in budgets:
        return budgets[text]
    if not text[:1].isdigit():
        raise unknown_name("budget", text, budgets)
    return parse(text)


def allowed_cores() -> list[int]:
    """The numbers of the cores that this process may use, by its affinity."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def unmet(budget: Budget) -> list[str]:
    """The limits of the budget that this machine cannot provide, in words."""
    cores, memory = len(allowed_cores()), psutil.virtual_memory().total
    problems = []
    if budget.cores and budget.cores > cores:
        problems.append(f"{counted(budget.cores, 'core')} required, {cores} available")
    if budget.memory_bytes and budget.memory_bytes > memory:
        problems.append(
            f"{budget.memory_bytes / 1e9:.1f} GB of memory required, {memory / 1e9:.1f} GB available"
        )
    gpus = device.gpu_memory()
    if budget.gpu_memory_bytes and gpus and budget.gpu_memory_bytes > min(gpus):
        problems.append(
            f"{budget.gpu_memory_bytes / 1e9:.1f} GB of GPU memory required, {min(gpus) / 1e9:.1f} GB available"
        )
    return problems

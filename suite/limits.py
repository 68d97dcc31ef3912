"""Runs a command on a budget's cores and memory and measures it: BenchExec on cgroups, or a polling watcher where there are none.

The time limit is the runner's, which knows the phases; BenchExec's own is a net below it.
"""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import psutil

from buzzer import caches
from buzzer.suite import guard
from buzzer.suite.budget import Budget, allowed_cores

POLL_S = 0.05
LEAST_SCORING_S = 60.0
NET_S = 10.0  # after which BenchExec ends a run that the runner should have ended
# Thread pools are sized by these before the first import; a pool larger than the budget only slows the run.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",
)


@dataclass(frozen=True)
class Measured:
    """How a command ended.

    `reason` is "" (by itself), "memory", "walltime", or "killed" (by `stop`); the runner adds "scoring", "interrupted" and "failed".
    """

    reason: str
    exit_code: int  # the exit status, or minus the signal's number
    cpu_s: float | None
    peak_memory_bytes: int | None
    error: str = ""  # why the command could not be started


class Limiter(Protocol):
    """Runs one command to its end; `stop` and `keep_peak` may be called from another thread, and more than once."""

    enforcement: str

    def run(self, command: Sequence[str], stderr: Path, environment: Mapping[str, str]) -> Measured: ...

    def stop(self) -> None: ...

    def keep_peak(self) -> None:
        """What is compared has ended: the peak memory is the one until now."""


def environment_of(budget: Budget) -> dict[str, str]:
    """Environment variables that tell the libraries how many threads the budget has, and where their caches are."""
    cores = str(budget.cores or len(allowed_cores()))
    fixed = {"TOKENIZERS_PARALLELISM": "false", guard.VARIABLE: guard.mark()}
    return dict.fromkeys(THREAD_VARIABLES, cores) | fixed | caches.environment()


def scoring_s(budget: Budget) -> float:
    """Seconds that scoring may take: as long as the job, a minute at the least; infinite without a time limit."""
    return float("inf") if budget.time_s is None else max(budget.time_s, LEAST_SCORING_S)


def limiter(budget: Budget) -> Limiter:
    """The strictest enforcement that this machine allows."""
    return Cgroups(budget) if cgroups_work() else Polled(budget)


@cache
def cgroups_work() -> bool:
    """Whether BenchExec can limit and measure here; found out by running `true` under every kind of limit."""
    if os.environ.get("BUZZER_ENFORCEMENT") == "polled":
        return False
    logging.getLogger().setLevel(logging.CRITICAL)  # BenchExec logs through the root logger
    try:
        trial = Cgroups(Budget("trial", 1, 10**8, 10.0))
        return trial.run([sys.executable, "-S", "-c", ""], Path(os.devnull), {}).exit_code == 0
    except (Exception, SystemExit):  # noqa: BLE001  BenchExec ends the program where a group is missing
        return False


def usable_cores(budget: Budget) -> list[int] | None:
    return allowed_cores()[: budget.cores] if budget.cores else None


class Cgroups:
    """BenchExec's RunExecutor: kernel-enforced cores and memory, exact CPU time and peak.

    The peak is the control group's: resident memory and the page cache the run filled.
    """

    enforcement = "cgroups"

    def __init__(self, budget: Budget) -> None:
        from benchexec.runexecutor import RunExecutor

        self._budget = budget
        self._executor = RunExecutor(use_namespaces=False)
        self._group: Any = None
        self._peak: int | None = None
        guard.watch(self._executor, self._take)

    def _take(self, group: Any) -> None:
        self._group = group

    def run(self, command: Sequence[str], stderr: Path, environment: Mapping[str, str]) -> Measured:
        result = self._executor.execute_run(
            list(command),
            output_filename=os.devnull,
            error_filename=str(stderr),
            write_header=False,
            walltimelimit=self._net_s(),
            cores=usable_cores(self._budget),
            memlimit=self._budget.memory_bytes,
            environments={"newEnv": dict(environment)},
        )
        exit_code = result.get("exitcode")
        if exit_code is None:  # the command could not be started
            return Measured("failed", 1, None, None)
        return Measured(
            reason=result.get("terminationreason", ""),
            exit_code=-exit_code.signal if exit_code.signal else exit_code.value,
            cpu_s=result.get("cputime"),
            peak_memory_bytes=result.get("memory") if self._peak is None else self._peak,
        )

    def _net_s(self) -> float | None:
        limit = self._budget.time_s
        return None if limit is None else limit + scoring_s(self._budget) + NET_S

    def stop(self) -> None:
        self._executor.stop()

    def keep_peak(self) -> None:
        if self._group is not None and self._peak is None:
            # The command may end meanwhile, and BenchExec takes its group apart.
            with suppress(OSError, ValueError, AttributeError, AssertionError):
                self._peak = self._group.read_max_mem_usage()


class Polled:
    """A watcher that looks every 50 ms: a short overshoot between two looks is possible, and the record says so.

    The peak is the sum of resident bytes over the process and its children.
    """

    enforcement = "polled"

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._stopped, self._kept = threading.Event(), threading.Event()

    def run(self, command: Sequence[str], stderr: Path, environment: Mapping[str, str]) -> Measured:
        peak, cpu, reason = 0, 0.0, ""
        with stderr.open("w") as errors:
            process = psutil.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=os.environ | dict(environment),
                start_new_session=True,
                preexec_fn=pin(usable_cores(self._budget)),
            )
            while process.poll() is None and not reason:
                memory, cpu_now = usage(process)
                peak, cpu = peak if self._kept.is_set() else max(peak, memory), max(cpu, cpu_now)
                reason = self._violation(memory)
                self._stopped.wait(POLL_S)
            if reason:
                kill_tree(process)
        return Measured(reason, process.wait(), cpu, peak)

    def _violation(self, memory: int) -> str:
        if self._stopped.is_set():
            return "killed"
        limit = self._budget.memory_bytes
        return "memory" if limit and memory > limit else ""

    def stop(self) -> None:
        self._stopped.set()

    def keep_peak(self) -> None:
        self._kept.set()


def pin(cores: list[int] | None) -> Callable[[], None] | None:
    """A function for the new process that keeps it on `cores`, where the system can."""
    if cores is None or not hasattr(os, "sched_setaffinity"):
        return None
    return lambda: os.sched_setaffinity(0, cores)


def usage(process: psutil.Process) -> tuple[int, float]:
    """Resident bytes and CPU seconds of a process and its living children."""
    memory, cpu = 0, 0.0
    with suppress(psutil.NoSuchProcess):
        for member in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                times = member.cpu_times()
                memory += member.memory_info().rss
                cpu += times.user + times.system
    return memory, cpu


def kill_tree(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        for member in [*process.children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                member.kill()

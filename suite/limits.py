"""Runs a command inside a budget and measures it: BenchExec on cgroups, or a polling watcher where there are none."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import psutil

from buzzer.suite import guard
from buzzer.suite.budget import Budget, allowed_cores

POLL_S = 0.05
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
    """How a command ended: `reason` is "", "memory", "walltime" or "killed"."""

    reason: str
    exit_code: int  # the exit status, or minus the signal's number
    cpu_s: float | None
    peak_memory_bytes: int | None


class Limiter(Protocol):
    """Runs one command to its end; `stop` may be called from another thread."""

    enforcement: str

    def run(self, command: Sequence[str], stderr: Path, environment: Mapping[str, str]) -> Measured: ...
    def stop(self) -> None: ...


def environment_of(budget: Budget) -> dict[str, str]:
    """Environment variables that tell the libraries how many threads the budget has."""
    cores = str(budget.cores or len(allowed_cores()))
    fixed = {"TOKENIZERS_PARALLELISM": "false", guard.VARIABLE: guard.mark()}
    return dict.fromkeys(THREAD_VARIABLES, cores) | fixed


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
    """BenchExec's RunExecutor: kernel-enforced cores and memory, wall-clock limit, exact CPU time and peak.

    The peak is the control group's: resident memory and the page cache the run filled.
    """

    enforcement = "cgroups"

    def __init__(self, budget: Budget) -> None:
        from benchexec.runexecutor import RunExecutor

        self._budget = budget
        self._executor = RunExecutor(use_namespaces=False)
        guard.watch(self._executor)

    def run(self, command: Sequence[str], stderr: Path, environment: Mapping[str, str]) -> Measured:
        result = self._executor.execute_run(
            list(command),
            output_filename=os.devnull,
            error_filename=str(stderr),
            write_header=False,
            walltimelimit=self._budget.time_s,
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
            peak_memory_bytes=result.get("memory"),
        )

    def stop(self) -> None:
        self._executor.stop()


class Polled:
    """A watcher that looks every 50 ms: a short overshoot between two looks is possible, and the record says so.

    The peak is the sum of resident bytes over the process and its children.
    """

    enforcement = "polled"

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._stopped = threading.Event()

    def run(self, command: Sequence[str], stderr: Path, environment: Mapping[str, str]) -> Measured:
        deadline = time.monotonic() + (self._budget.time_s or float("inf"))
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
                peak, cpu = max(peak, memory), max(cpu, cpu_now)
                reason = self._violation(memory, deadline)
                time.sleep(POLL_S)
            if reason:
                kill_tree(process)
        return Measured(reason, process.wait(), cpu, peak)

    def _violation(self, memory: int, deadline: float) -> str:
        if self._stopped.is_set():
            return "killed"
        if self._budget.memory_bytes and memory > self._budget.memory_bytes:
            return "memory"
        return "walltime" if time.monotonic() > deadline else ""

    def stop(self) -> None:
        self._stopped.set()


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

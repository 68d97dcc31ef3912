"""Runs a command on a budget's cores and memory and measures it: BenchExec on cgroups, or a polling watcher where there are none.

The time limit is the runner's, which knows the phases; BenchExec's own is a net below it.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import psutil

from buzzer import caches
from buzzer.suite.budget import Budget, allowed_cores
from buzzer.suite.run import reaper

POLL_S = 0.05
LEAST_SCORING_S = 60.0
UNKILLABLE_S = 10.0  # after which a process that was killed and does not go is left alone
RUN = "BUZZER_RUN"  # the variable that marks the processes of a polled run
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

    `reason` is "" (by itself), "memory", "cores", "walltime", or "killed" (by `stop`); the runner adds "scoring",
    "lingering", "interrupted" and "failed".
    """

    reason: str
    exit_code: int  # the exit status, or minus the signal's number
    cpu_s: float | None
    peak_memory_bytes: int | None
    error: str = ""  # why the command could not be started
    started_s: float | None = None  # time.perf_counter() just before the process was started


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
    fixed = {"TOKENIZERS_PARALLELISM": "false", reaper.VARIABLE: reaper.token()}
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
        self._started_s: float | None = None
        reaper.watch(self._executor, self._take)

    def _take(self, group: Any) -> None:
        self._group, self._started_s = group, time.perf_counter()

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
            started_s=self._started_s,
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

    The peak is the sum of resident bytes over the run's processes. Their cores are a mask that a process can take off: one
    that does is ended.
    """

    enforcement = "polled"

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._stopped, self._kept = threading.Event(), threading.Event()

    def run(self, command: Sequence[str], stderr: Path, environment: Mapping[str, str]) -> Measured:
        peak, reason, mark = 0, "", uuid.uuid4().hex
        temporary = stderr.with_name("tmp")  # goes with the run's other files, as BenchExec's does
        temporary.mkdir(exist_ok=True)
        with stderr.open("w") as errors:
            started = time.perf_counter()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=os.environ | dict(environment) | {RUN: mark, "TMPDIR": str(temporary)},
                start_new_session=True,
                preexec_fn=pin(usable_cores(self._budget)),  # noqa: PLW1509  one system call, before any thread starts
            )
        family = Family(process.pid, mark)
        while not reason and (ended := wait(process)) is None:
            memory = family.look()
            peak = peak if self._kept.is_set() else max(peak, memory)
            reason = self._violation(memory, family)
            self._stopped.wait(POLL_S)
        family.look()
        family.kill()
        deadline = time.monotonic() + UNKILLABLE_S
        while ended is None and (ended := wait(process)) is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        exit_code, cpu_s = ended or (-signal.SIGKILL, 0.0)  # it hangs in the kernel
        return Measured(reason, exit_code, family.cpu_s(cpu_s), peak, started_s=started)

    def _violation(self, memory: int, family: "Family") -> str:
        if self._stopped.is_set():
            return "killed"
        if self._budget.cores and not family.keeps_to(allowed_cores()[: self._budget.cores]):
            return "cores"
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


def wait(process: subprocess.Popen[bytes]) -> tuple[int, float] | None:
    """Exit code of a process and CPU seconds of it and of all children that were waited for; None while it goes on."""
    pid, status, used = os.wait4(process.pid, os.WNOHANG)
    if not pid:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_utime + used.ru_stime


class Family:
    """The processes of a run: its first one, their children, and whoever has left its parents and carries the run's mark.

    A process that leaves its parents between two looks and wipes out its environment is not found.
    """

    def __init__(self, pid: int, mark: str) -> None:
        self._mark = mark
        self._first = pid
        self._seen = {*psutil.pids()} - {pid}
        self._members: dict[int, psutil.Process] = {}
        self._cpu: dict[psutil.Process, float] = {}  # own seconds when last seen
        self._orphans: set[psutil.Process] = set()  # nobody here will wait for them

    def look(self) -> int:
        """Find new members; the resident bytes of all."""
        self._find()
        memory = 0
        for pid, member in [*self._members.items()]:
            try:
                with member.oneshot():
                    times = member.cpu_times()
                    memory += member.memory_info().rss
                    self._cpu[member] = times.user + times.system
                    if pid != self._first and member.ppid() not in self._members:
                        self._orphans.add(member)
            except psutil.Error:
                del self._members[pid]
        return memory

    def _find(self) -> None:
        pids = {*psutil.pids()}
        new, self._seen = pids - self._seen, pids
        for pid in sorted(new):
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                if pid == self._first or process.ppid() in self._members or self._marked(process):
                    self._members[pid] = process

    def _marked(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error, OSError):
            return process.environ().get(RUN) == self._mark
        return False

    def keeps_to(self, cores: list[int]) -> bool:
        """Whether every member may run on `cores` only, where the system tells."""
        if not hasattr(os, "sched_getaffinity"):
            return True
        for pid in self._members:
            with suppress(OSError):
                if not os.sched_getaffinity(pid) <= {*cores}:
                    return False
        return True

    def cpu_s(self, first_s: float) -> float:
        """CPU seconds of all that were ever here; `first_s`: of the first and all that were waited for, as the kernel told at its end."""
        return max(sum(self._cpu.values()), first_s + sum(self._cpu[p] for p in self._orphans))

    def kill(self) -> None:
        """Kill every member, and those that they start meanwhile."""
        deadline = time.monotonic() + UNKILLABLE_S
        while time.monotonic() < deadline:
            self.look()
            alive = [m for m in self._members.values() if living(m)]
            if not alive:
                return
            for member in alive:
                with suppress(psutil.Error):
                    member.kill()
            time.sleep(0.01)


def living(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False

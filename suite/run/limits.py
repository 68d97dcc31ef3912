"""Runs a command with the cores and memory of a budget, and measures it: with BenchExec on control groups, or else by polling.

The time limit is enforced by `supervise.py`, which knows the phases. BenchExec's own time limit is longer; it is a fallback.
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
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

import psutil

from buzzer import caches
from buzzer.suite.budget import Budget, allowed_cores
from buzzer.suite.run import reaper

Enforcement = Literal["cgroups", "polled", "none"]  # by the kernel; by polling; the run was not started
POLL_S = 0.05
LEAST_SCORING_S = 60.0
LINGER_S = 30.0  # seconds that a process may take to end after it has reported its end
UNKILLABLE_S = 10.0  # seconds to wait for a killed process that does not end
RUN = "BUZZER_RUN"  # environment variable with the token of a polled run
FALLBACK_S = 10.0  # seconds after which BenchExec ends a run that should already have been ended
# Libraries read these at import to size their thread pools. A pool larger than the budget only slows the run down.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",
)


class Reason(StrEnum):
    """Why a command ended. The first five are reported by the limiter, the others by `supervise.py`."""

    SELF = ""  # the command ended without intervention
    MEMORY = "memory"  # over the memory limit
    CORES = "cores"  # used other cores than the budget's
    TIME = "walltime"  # over the time limit
    KILLED = "killed"  # by `Limiter.stop`, or by a limit that the budget does not set
    SCORING = "scoring"  # phase `score` took too long
    LINGERING = "lingering"  # the process did not end after it had reported its end
    INTERRUPTED = "interrupted"  # the user stopped the run
    FAILED = "failed"  # the command could not be started or measured


@dataclass(frozen=True)
class Measured:
    """How a command ended, and what it used."""

    reason: Reason
    exit_code: int  # exit status, or minus the number of the signal
    cpu_s: float | None  # CPU seconds of all its processes
    peak_memory_bytes: int | None
    error: str = ""  # why the command could not be started
    started_s: float | None = None  # time.perf_counter() just before the process was started


class Limiter(Protocol):
    """Runs one command to its end. `stop` and `freeze_peak` may be called from another thread, and more than once."""

    enforcement: Enforcement

    def run(self, command: Sequence[str], stderr: Path, environment: Mapping[str, str]) -> Measured:
        """Run the command; its stderr goes to a file."""
        ...

    def stop(self) -> None:
        """Kill all processes of the command."""

    def freeze_peak(self) -> None:
        """Stop counting memory into the peak. Called when phase `score` has begun."""


def environment_of(budget: Budget) -> dict[str, str]:
    """Environment variables of a run: the number of threads of its libraries, their cache folders, and the harness's token."""
    cores = str(budget.cores or len(allowed_cores()))
    fixed = {"TOKENIZERS_PARALLELISM": "false", reaper.VARIABLE: reaper.token()}
    return dict.fromkeys(THREAD_VARIABLES, cores) | fixed | caches.environment()


def scoring_s(budget: Budget) -> float:
    """Seconds that scoring may take: the time limit of the run, but at least 60; infinite without a time limit."""
    return float("inf") if budget.time_s is None else max(budget.time_s, LEAST_SCORING_S)


def limiter(budget: Budget) -> Limiter:
    """The strictest enforcement that works on this machine."""
    return Cgroups(budget) if cgroups_work() else Polled(budget)


@cache
def cgroups_work() -> bool:
    """Whether BenchExec can limit and measure here; tested by running Python under every kind of limit."""
    if os.environ.get("BUZZER_ENFORCEMENT") == "polled":
        return False
    logging.getLogger().addFilter(not_of_benchexec)
    try:
        trial = Cgroups(Budget("trial", 1, 10**8, 10.0))
        return trial.run([sys.executable, "-S", "-c", ""], Path(os.devnull), {}).exit_code == 0
    except (Exception, SystemExit):  # noqa: BLE001  BenchExec exits the program if a group is missing
        return False


def not_of_benchexec(record: logging.LogRecord) -> bool:
    """Whether another library logged this. BenchExec logs straight to the root logger, whose level belongs to the user."""
    return "benchexec" not in Path(record.pathname).parts


def usable_cores(budget: Budget) -> list[int] | None:
    """The cores that a run under this budget may use; None = all."""
    return allowed_cores()[: budget.cores] if budget.cores else None


class Cgroups:
    """Limits by control groups, with BenchExec's RunExecutor: enforced by the kernel, exact CPU time and peak memory.

    The peak memory is that of the control group: resident memory, and the page cache that the run filled.
    """

    enforcement: Enforcement = "cgroups"

    def __init__(self, budget: Budget) -> None:
        from benchexec.runexecutor import RunExecutor

        self._budget = budget
        self._executor = RunExecutor(use_namespaces=False)
        self._group: Any = None
        self._peak: int | None = None
        self._started_s: float | None = None
        reaper.register(self._executor, self._started)

    def _started(self, group: Any) -> None:
        self._group, self._started_s = group, time.perf_counter()

    def run(self, command: Sequence[str], stderr: Path, environment: Mapping[str, str]) -> Measured:
        """Run the command under BenchExec."""
        result = self._executor.execute_run(
            list(command),
            output_filename=os.devnull,
            error_filename=str(stderr),
            write_header=False,
            walltimelimit=self._fallback_s(),
            cores=usable_cores(self._budget),
            memlimit=self._budget.memory_bytes,
            environments={"newEnv": dict(environment)},
        )
        exit_code = result.get("exitcode")
        if exit_code is None:  # the command could not be started
            return Measured(Reason.FAILED, 1, None, None)
        return Measured(
            reason=reason_of(result.get("terminationreason", "")),
            exit_code=-exit_code.signal if exit_code.signal else exit_code.value,
            cpu_s=result.get("cputime"),
            peak_memory_bytes=result.get("memory") if self._peak is None else self._peak,
            started_s=self._started_s,
        )

    def _fallback_s(self) -> float | None:
        limit = self._budget.time_s
        return None if limit is None else limit + scoring_s(self._budget) + FALLBACK_S

    def stop(self) -> None:
        """Kill the control group."""
        self._executor.stop()

    def freeze_peak(self) -> None:
        """Read the peak memory now."""
        if self._group is not None and self._peak is None:
            # The command may end meanwhile, and BenchExec removes its group.
            with suppress(OSError, ValueError, AttributeError, AssertionError):
                self._peak = self._group.read_max_mem_usage()


class Polled:
    """Limits by polling every 50 ms. A run can exceed its memory between two samples; its record shows that it was polled.

    The peak is the largest sum of the resident bytes of the run's processes. Cores are set by an affinity mask. A process can
    change its mask; a run that does so is ended.
    """

    enforcement: Enforcement = "polled"

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._stopped, self._peak_frozen = threading.Event(), threading.Event()

    def run(self, command: Sequence[str], stderr: Path, environment: Mapping[str, str]) -> Measured:
        """Run the command and poll its processes."""
        peak, reason, token = 0, Reason.SELF, uuid.uuid4().hex
        temporary = stderr.with_name("tmp")  # removed with the run's other files
        temporary.mkdir(exist_ok=True)
        with stderr.open("w") as errors:
            started = time.perf_counter()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=os.environ | dict(environment) | {RUN: token, "TMPDIR": str(temporary)},
                start_new_session=True,
                preexec_fn=pin(usable_cores(self._budget)),  # noqa: PLW1509  one system call, before any thread starts
            )
        family, ended = Family(process.pid, token), None
        while reason is Reason.SELF and (ended := wait(process)) is None:
            memory = family.sample()
            peak = peak if self._peak_frozen.is_set() else max(peak, memory)
            reason = self._violation(memory, family)
            self._stopped.wait(POLL_S)
        family.sample()
        family.kill()
        deadline = time.monotonic() + UNKILLABLE_S
        while ended is None and (ended := wait(process)) is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        exit_code, cpu_s = ended or (-signal.SIGKILL, 0.0)  # the process hangs in the kernel
        return Measured(reason, exit_code, family.cpu_s(cpu_s), peak, started_s=started)

    def _violation(self, memory: int, family: "Family") -> Reason:
        if self._stopped.is_set():
            return Reason.KILLED
        if self._budget.cores and not family.keeps_to(allowed_cores()[: self._budget.cores]):
            return Reason.CORES
        limit = self._budget.memory_bytes
        return Reason.MEMORY if limit and memory > limit else Reason.SELF

    def stop(self) -> None:
        """Kill the processes at the next sample."""
        self._stopped.set()

    def freeze_peak(self) -> None:
        """Stop counting samples into the peak."""
        self._peak_frozen.set()


def reason_of(text: str) -> Reason:
    """The `Reason` for BenchExec's termination reason."""
    return Reason(text) if text in [*Reason] else Reason.KILLED


def pin(cores: list[int] | None) -> Callable[[], None] | None:
    """A function that sets the affinity of the new process to `cores`; None if there is no limit or the system has no affinity."""
    if cores is None or not hasattr(os, "sched_setaffinity"):
        return None
    return lambda: os.sched_setaffinity(0, cores)


def wait(process: subprocess.Popen[bytes]) -> tuple[int, float] | None:
    """Exit code of a process, and CPU seconds of the process and all children it has waited for; None while it runs."""
    pid, status, used = os.wait4(process.pid, os.WNOHANG)
    if not pid:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_utime + used.ru_stime


class Family:
    """The processes of a run: the first process, all its descendants, and daemons that have the run's token in their environment.

    A process that detaches from its parent between two samples and removes the token from its environment is not found.
    """

    def __init__(self, pid: int, token: str) -> None:
        self._token = token
        self._first = pid
        self._seen = {*psutil.pids()} - {pid}
        self._members: dict[int, psutil.Process] = {}
        self._cpu: dict[psutil.Process, float] = {}  # CPU seconds of each at its last sample
        self._orphans: set[psutil.Process] = set()  # no process of the run waits for them

    def sample(self) -> int:
        """Look for new members. Returns the resident bytes of all members."""
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
                if pid == self._first or process.ppid() in self._members or self._has_token(process):
                    self._members[pid] = process

    def _has_token(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error, OSError):
            return process.environ().get(RUN) == self._token
        return False

    def keeps_to(self, cores: list[int]) -> bool:
        """Whether every member may run on `cores` only; True if the system has no affinity."""
        if not hasattr(os, "sched_getaffinity"):
            return True
        for pid in self._members:
            with suppress(OSError):
                if not os.sched_getaffinity(pid) <= {*cores}:
                    return False
        return True

    def cpu_s(self, first_s: float) -> float:
        """CPU seconds of all members, including ended ones. `first_s`: the kernel's figure for the first process and the children it waited for."""
        return max(sum(self._cpu.values()), first_s + sum(self._cpu[p] for p in self._orphans))

    def kill(self) -> None:
        """Kill every member, including processes that are started in the meantime."""
        deadline = time.monotonic() + UNKILLABLE_S
        while time.monotonic() < deadline:
            self.sample()
            alive = [m for m in self._members.values() if living(m)]
            if not alive:
                return
            for member in alive:
                with suppress(psutil.Error):
                    member.kill()
            time.sleep(0.01)


def living(process: psutil.Process) -> bool:
    """Whether a process exists and is not a zombie."""
    with suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False

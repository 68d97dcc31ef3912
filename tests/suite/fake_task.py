"""Tasks that do as they are told, for the harness's tests; the child process imports this module by name."""

import gc
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from buzzer.caches import COMPILED, kernels
from buzzer.errors import DataError, UnsupportedError
from buzzer.models.api.context import Data, Progress, Result, RunContext, Steps
from buzzer.suite.run.clock import Clock


def caches() -> dict[str, Any]:
    """Where this process finds its caches."""
    return {
        "home": os.environ["HOME"],
        "kernels": str(kernels()),
        "compiled": {name: os.environ[name] for name in COMPILED},
    }


class Fake:
    """`params["do"]` chooses what happens in the predict phase."""

    def prepare(self, source: Path | None, cache: Path, scale: float, seed: int, progress: Progress) -> Data:
        return Data(cache, f"fingerprint-{scale}-{seed}", "generated", {"rows": 10}, scale, ("a stand-in",))

    def fit(self, job: RunContext) -> Steps:
        yield "fit"
        if job.params["do"] == "bad-fit":
            raise UnsupportedError("no weights", "install the extra")
        (job.work / "model").write_text("fitted")
        return Result()

    def predict(self, job: RunContext) -> Steps:
        yield "load"
        assert (job.work / "model").read_text() == "fitted"
        do = job.params["do"].replace("-", "_")
        for _ in range(3):
            yield "predict"
            getattr(self, "work" if do.startswith("score_") else do)(job)
        yield "write"
        (job.out / "submission.csv").write_text("1\n")
        yield "score"
        if do == "score_again":
            yield "predict"
        if do.startswith("score_"):
            value = getattr(self, do)(job)
            return Result({"accuracy": value}, 10, {}, (job.out / "submission.csv",))
        details: dict[str, Any] = {"threads": job.threads} | (caches() if do == "show_caches" else {})
        off = 0.5 if job.backend == "onnxruntime" and job.params["do"] == "be-wrong" else 0.0
        return Result({"accuracy": 0.9 - off}, 10, details, (job.out / "submission.csv",))

    def work(self, job: RunContext) -> None:
        time.sleep(0.02)

    be_wrong = bad_fit = show_caches = work

    def eat(self, job: RunContext) -> None:
        hoard = []
        while True:
            hoard.append(bytearray(16 << 20))
            hoard[-1][::4096] = b"x" * len(hoard[-1][::4096])

    def sleep(self, job: RunContext) -> None:
        time.sleep(60)

    def crash(self, job: RunContext) -> None:
        raise RuntimeError("something broke")

    def bad_data(self, job: RunContext) -> None:
        raise DataError("train_set.csv:12: not a date", "check the file")

    def no_gpu(self, job: RunContext) -> None:
        raise UnsupportedError("no CUDA device", "use --engine polars")

    def no_memory(self, job: RunContext) -> None:
        raise MemoryError("std::bad_alloc: out_of_memory: CUDA error")

    def segfault(self, job: RunContext) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def exit_early(self, job: RunContext) -> None:
        os._exit(7)

    def score_again(self, job: RunContext) -> float:
        return 0.9

    def score_hang(self, job: RunContext) -> float:
        time.sleep(60)
        return 0.9

    def score_long(self, job: RunContext) -> float:
        """Longer than a budget of six seconds."""
        time.sleep(6.5)
        return 0.9

    def score_heavy(self, job: RunContext) -> float:
        """300 MB and 1.5 CPU seconds, after the parent has seen that scoring began."""
        time.sleep(1.5)
        block = bytearray(300 << 20)
        block[::4096] = b"x" * len(block[::4096])
        before = time.process_time()
        while time.process_time() < before + 1.5:
            pass
        return 0.9

    def score_crash(self, job: RunContext) -> float:
        raise RuntimeError("no truth")

    def score_nan(self, job: RunContext) -> float:
        return float("nan")

    def score_no_number(self, job: RunContext) -> float:
        return "high"  # type: ignore[return-value]

    def score_cheat(self, job: RunContext) -> float:
        """Predict while the clock stands still."""
        (job.out / "submission.csv").write_text("2\n")
        return 0.9

    def scribble(self, job: RunContext) -> None:
        """Write what is no event into the events file."""
        clock = next(x for x in gc.get_objects() if isinstance(x, Clock))
        clock._write({"event": "end", "name": "predict"})

    def write_to_fit(self, job: RunContext) -> None:
        """Keep something where the next run would find it."""
        (job.work / "answers").write_text("0.9")

    def grouped(self, job: RunContext) -> None:
        """What rapidsmpf's task groups make of a fault."""
        inner = RuntimeError("std::bad_alloc: out_of_memory: CUDA error")
        raise ExceptionGroup("unhandled errors", [ExceptionGroup("a task", [inner])])

    def odd_name(self, job: RunContext) -> None:
        raise DataError("no such file: \udcff.csv")

    def flood(self, job: RunContext) -> None:
        """More on stderr than anyone reads, in one line."""
        sys.stderr.write("x" * 10_000_000 + "\nthe end\n")
        raise RuntimeError("flooded")

    def spawn(self, job: RunContext) -> None:
        """Leave a grandchild behind that would outlive the run."""
        import subprocess

        (job.out / "pid").write_text(str(subprocess.Popen(["sleep", "300"]).pid))
        time.sleep(60)

    def kill(self, job: RunContext) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def full_disk(self, job: RunContext) -> None:
        with Path("/dev/full").open("w") as file:
            file.write("a submission")

    def gpu_busy(self, job: RunContext) -> None:
        raise RuntimeError("cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable")

    def old_driver(self, job: RunContext) -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040).")

    def refused(self, job: RunContext) -> None:
        raise NotImplementedError("Query execution with GPU not possible: unsupported operations.")

    def soak(self, job: RunContext) -> None:
        """One fault a run, drawn by the run's id and logged before it strikes; none once `calm` lies in the cache."""
        if getattr(self, "struck", False):
            return
        self.struck = True
        cache = Path(os.environ["BUZZER_CACHE"])
        drawn = FAULTS[int(job.out.name, 16) % len(FAULTS)]
        fault = "work" if (cache / "calm").exists() else drawn
        told = {"run": job.out.name, "fault": fault, "groups": Path("/proc/self/cgroup").read_text().split()}
        with (cache / "soak.jsonl").open("a") as log:
            log.write(json.dumps(told) + "\n")
        getattr(self, fault)(job)


# What strikes in a soak: a third goes well.
FAULTS = (
    *["work"] * 6, "eat", "eat", "sleep", "spawn", "crash", "segfault", "kill", "exit_early", "no_memory", "bad_data",
    "no_gpu", "full_disk",
)  # fmt: skip


class Faulty(Fake):
    """`params["do"]` is what goes wrong and in which phase: "no-memory features"."""

    def strike(self, job: RunContext, phase: str) -> None:
        fault, _, chosen = job.params["do"].partition(" ")
        if chosen == phase:
            getattr(self, fault.replace("-", "_"))(job)

    def fit(self, job: RunContext) -> Steps:
        for phase in ("features", "fit"):
            yield phase
            self.strike(job, phase)
        (job.work / "model").write_text("fitted")
        return Result()

    def predict(self, job: RunContext) -> Steps:
        for phase in ("transfer", "trees"):
            yield phase
            self.strike(job, phase)
        return Result({"accuracy": 0.9}, 10)


TASK, FAULTY = Fake(), Faulty()

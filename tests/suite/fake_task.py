"""Tasks for the tests of the harness. Their parameters say what they do. The worker imports this module by name."""

import gc
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from buzzer.caches import COMPILED, kernels
from buzzer.datasets.contract import Progress
from buzzer.errors import DataError, UnsupportedError
from buzzer.models.api import progress
from buzzer.models.api.context import Data, Result, RunContext, Steps
from buzzer.models.kept_pieces import KeptPieces
from buzzer.suite.run.clock import Clock


def caches() -> dict[str, Any]:
    """The folders of this process's caches."""
    return {
        "home": os.environ["HOME"],
        "kernels": str(kernels()),
        "compiled": {name: os.environ[name] for name in COMPILED},
    }


class Fake:
    """`params["do"]` chooses what happens in the predict phase."""

    def prepare(self, source: Path | None, cache: Path, scale: float, seed: int, progress: Progress) -> Data:
        return Data(cache, f"fingerprint-{scale}-{seed}", "generated", {"rows": 10}, scale, ("a stand-in",))

    def fit(self, context: RunContext) -> Steps:
        yield "fit"
        if context.params["do"] == "bad-fit":
            raise UnsupportedError("no weights", "install the extra")
        for _ in progress.over(range(4 if context.params["do"] == "slow-fit" else 0)):
            time.sleep(0.6)
        (context.work / "model").write_text("fitted")
        return Result()

    def predict(self, context: RunContext) -> Steps:
        yield "load"
        assert (context.work / "model").read_text() == "fitted"
        do = context.params["do"].replace("-", "_")
        if do == "pieces":
            return (yield from self.in_pieces(context))
        for _ in range(3):
            yield "predict"
            getattr(self, "work" if do.startswith("score_") else do)(context)
        yield "write"
        (context.out / "submission.csv").write_text("1\n")
        yield "score"
        if do == "score_again":
            yield "predict"
        if do.startswith("score_"):
            value = getattr(self, do)(context)
            if isinstance(value, Result):
                return value
            return Result({"accuracy": value}, 10, {}, (context.out / "submission.csv",))
        details: dict[str, Any] = {"threads": context.threads} | (caches() if do == "show_caches" else {})
        off = 0.5 if context.backend == "onnxruntime" and context.params["do"] == "be-wrong" else 0.0
        return Result({"accuracy": 0.9 - off}, 10, details, (context.out / "submission.csv",))

    def in_pieces(self, context: RunContext) -> Steps:
        """Four pieces of 0.2 s, each kept. Once there are FAKE_STOPS pieces, it waits to be stopped."""
        assert context.partial is not None
        kept, made = KeptPieces(context.partial), 0
        for number, name in enumerate(("a", "b", "c", "d"), 1):
            yield "predict"
            if "FAKE_FAILS" in os.environ:
                raise RuntimeError("something broke")
            if name not in kept:
                made += 1
                time.sleep(0.2)
                with kept.making(name) as folder:
                    (folder / "row").write_text(f"{name}\n")
            if str(number) == os.environ.get("FAKE_STOPS"):
                time.sleep(60)
        yield "write"
        rows = [(kept.path(name) / "row").read_text() for name in ("a", "b", "c", "d")]
        (context.out / "submission.csv").write_text("".join(rows))
        yield "score"
        return Result({"accuracy": 0.9}, 4, {"made": made}, (context.out / "submission.csv",))

    def work(self, context: RunContext) -> None:
        time.sleep(0.02)

    be_wrong = bad_fit = slow_fit = show_caches = work

    def eat(self, context: RunContext) -> None:
        hoard = []
        while True:
            hoard.append(bytearray(16 << 20))
            hoard[-1][::4096] = b"x" * len(hoard[-1][::4096])

    def sleep(self, context: RunContext) -> None:
        time.sleep(60)

    def crash(self, context: RunContext) -> None:
        raise RuntimeError("something broke")

    def bad_data(self, context: RunContext) -> None:
        raise DataError("train_set.csv:12: not a date", "check the file")

    def no_gpu(self, context: RunContext) -> None:
        raise UnsupportedError("no CUDA device", "use --engine polars")

    def no_memory(self, context: RunContext) -> None:
        raise MemoryError("std::bad_alloc: out_of_memory: CUDA error")

    def segfault(self, context: RunContext) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def exit_early(self, context: RunContext) -> None:
        os._exit(7)

    def score_by_another_name(self, context: RunContext) -> Result:
        return Result({"acuracy": 0.9}, 10)

    def score_no_rows(self, context: RunContext) -> Result:
        return Result({"accuracy": 0.9}, 0)

    def score_above_one(self, context: RunContext) -> float:
        return 90.0

    def score_again(self, context: RunContext) -> float:
        return 0.9

    def score_hang(self, context: RunContext) -> float:
        time.sleep(60)
        return 0.9

    def score_long(self, context: RunContext) -> float:
        """Takes longer than a budget of six seconds."""
        time.sleep(6.5)
        return 0.9

    def score_heavy(self, context: RunContext) -> float:
        """Uses 300 MB and 1.5 CPU seconds after the harness has read that scoring began."""
        time.sleep(1.5)
        block = bytearray(300 << 20)
        block[::4096] = b"x" * len(block[::4096])
        before = time.process_time()
        while time.process_time() < before + 1.5:
            pass
        return 0.9

    def score_crash(self, context: RunContext) -> float:
        raise RuntimeError("no truth")

    def score_nan(self, context: RunContext) -> float:
        return float("nan")

    def score_no_number(self, context: RunContext) -> float:
        return "high"  # type: ignore[return-value]

    def score_cheat(self, context: RunContext) -> float:
        """Writes the submission after the clock has stopped."""
        (context.out / "submission.csv").write_text("2\n")
        return 0.9

    def scribble(self, context: RunContext) -> None:
        """Writes a line that is not an event to the events file."""
        clock = next(x for x in gc.get_objects() if isinstance(x, Clock))
        clock._events.write('{"event": "phase_ended", "name": "predict"}\n')

    def write_to_fit(self, context: RunContext) -> None:
        """Saves a file where the next run would find it."""
        (context.work / "answers").write_text("0.9")

    def grouped(self, context: RunContext) -> None:
        """Raises an exception in nested groups, like the task groups of rapidsmpf."""
        inner = RuntimeError("std::bad_alloc: out_of_memory: CUDA error")
        raise ExceptionGroup("unhandled errors", [ExceptionGroup("a task", [inner])])

    def odd_name(self, context: RunContext) -> None:
        raise DataError("no such file: \udcff.csv")

    def flood(self, context: RunContext) -> None:
        """Writes a line of 10 MB to stderr."""
        sys.stderr.write("x" * 10_000_000 + "\nthe end\n")
        raise RuntimeError("flooded")

    def spawn(self, context: RunContext) -> None:
        """Starts a process that would outlive the run."""
        import subprocess

        (context.out / "pid").write_text(str(subprocess.Popen(["sleep", "300"]).pid))
        time.sleep(60)

    def kill(self, context: RunContext) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def full_disk(self, context: RunContext) -> None:
        with Path("/dev/full").open("w") as file:
            file.write("a submission")

    def gpu_busy(self, context: RunContext) -> None:
        raise RuntimeError("cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable")

    def old_driver(self, context: RunContext) -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040).")

    def refused(self, context: RunContext) -> None:
        raise NotImplementedError("Query execution with GPU not possible: unsupported operations.")

    def soak(self, context: RunContext) -> None:
        """Causes one fault per run, which depends on the run's id and is logged first. Causes none if the cache has a file `calm`."""
        if getattr(self, "struck", False):
            return
        self.struck = True
        cache = Path(os.environ["BUZZER_CACHE"])
        chosen = FAULTS[int(context.out.name, 16) % len(FAULTS)]
        fault = "work" if (cache / "calm").exists() else chosen
        entry = {
            "run": context.out.name,
            "fault": fault,
            "groups": Path("/proc/self/cgroup").read_text().split(),
        }
        with (cache / "soak.jsonl").open("a") as log:
            log.write(json.dumps(entry) + "\n")
        getattr(self, fault)(context)


# The faults of the soak test. A third of the runs has none.
FAULTS = (
    *["work"] * 6, "eat", "eat", "sleep", "spawn", "crash", "segfault", "kill", "exit_early", "no_memory", "bad_data",
    "no_gpu", "full_disk",
)  # fmt: skip


class Faulty(Fake):
    """`params["do"]` names the fault and its phase: "no-memory features"."""

    def strike(self, context: RunContext, phase: str) -> None:
        fault, _, chosen = context.params["do"].partition(" ")
        if chosen == phase:
            getattr(self, fault.replace("-", "_"))(context)

    def fit(self, context: RunContext) -> Steps:
        for phase in ("features", "fit"):
            yield phase
            self.strike(context, phase)
        (context.work / "model").write_text("fitted")
        return Result()

    def predict(self, context: RunContext) -> Steps:
        for phase in ("transfer", "trees"):
            yield phase
            self.strike(context, phase)
        return Result({"accuracy": 0.9}, 10)


TASK, FAULTY = Fake(), Faulty()

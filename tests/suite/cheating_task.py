"""Tasks that try to deceive the harness. The worker imports this module by name.

Most work for `WORK_S` or `SHORT_S` seconds and try to hide that time, or leave something behind for the next run.
"""

import gc
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fake_task import Fake

from buzzer.models.api.context import SCORE, Result, RunContext, Steps
from buzzer.suite.run.clock import Clock
from buzzer.suite.run.events import Done, Event, PhaseEnded, PhaseStarted

WORK_S = 1.5  # seconds of work that the harness's clock detects
SHORT_S = 0.3  # seconds of work that the events or files reveal
CLAIM_S = 0.1  # seconds of work that a cheat reports


def ticker() -> Clock:
    """The worker's clock, which is in the same process as the task."""
    return next(x for x in gc.get_objects() if isinstance(x, Clock))


def write(event: Event) -> None:
    ticker()._write(event)


def report_score() -> float:
    """Write the events of a phase `score` that begins now. Returns the seconds since the start of the run."""
    clock = ticker()
    at = time.perf_counter() - clock._start
    write(PhaseEnded("predict", at - (clock._begin - clock._start), 0.0, 0, []))
    write(PhaseStarted(SCORE, at, clock._start))
    return at


def submit(context: RunContext) -> Path:
    path = context.out / "submission.csv"
    path.write_text("1\n")
    return path


class Cheat(Fake):
    """`params["do"]` chooses the cheat."""

    def predict(self, context: RunContext) -> Steps:
        cheat: Callable[[RunContext], Steps] = getattr(self, context.params["do"].replace("-", "_"))
        yield "load"
        yield "predict"
        return (yield from cheat(context))

    def finish(self, context: RunContext) -> Steps:
        submission = submit(context)
        yield SCORE
        return Result({"accuracy": 0.9}, 10, {}, (submission,))

    def honest(self, context: RunContext) -> Steps:
        time.sleep(SHORT_S)
        return (yield from self.finish(context))

    def short(self, context: RunContext) -> Steps:
        """An honest, quick run that reports its number of cores."""
        submission = submit(context)
        yield SCORE
        return Result({"accuracy": 0.9}, 10, {"cores": len(os.sched_getaffinity(0))}, (submission,))

    def moved_marks(self, context: RunContext) -> Steps:
        """Moves every time of the clock by the time that it worked."""
        time.sleep(SHORT_S)
        for name in ("_start", "_begin", "_lap"):
            setattr(ticker(), name, getattr(ticker(), name) + SHORT_S - CLAIM_S)
        return (yield from self.finish(context))

    def moved_begin(self, context: RunContext) -> Steps:
        """Moves only the beginning of `score`, after the event was written."""
        time.sleep(SHORT_S)
        submission = submit(context)
        yield SCORE
        ticker()._begin -= SHORT_S - CLAIM_S
        return Result({"accuracy": 0.9}, 10, {}, (submission,))

    def slow_clock(self, context: RunContext) -> Steps:
        """Slows the clock down to a tenth."""
        clock, real = ticker(), time.perf_counter
        from_s = real()
        clock._now = lambda: from_s + (real() - from_s) / 10
        time.perf_counter = clock._now
        time.sleep(WORK_S)
        return (yield from self.finish(context))

    def fast_clock(self, context: RunContext) -> Steps:
        """Makes the clock ten times too fast, as if to slow down a baseline."""
        clock, real = ticker(), time.perf_counter
        from_s = real()
        clock._now = lambda: from_s + (real() - from_s) * 10
        time.sleep(SHORT_S)
        return (yield from self.finish(context))

    def backdated_score(self, context: RunContext) -> Steps:
        """Writes the events of `score` itself, with an earlier time."""
        clock, began = ticker(), ticker()._begin
        time.sleep(WORK_S)
        submission = submit(context)
        at = began - clock._start + CLAIM_S
        write(PhaseEnded("predict", CLAIM_S, 0.0, 0, []))
        write(PhaseStarted(SCORE, at, clock._start))
        score_s = time.perf_counter() - clock._start - at
        write(PhaseEnded(SCORE, score_s, 0.0, 0, []))
        self.done(at, submission)
        yield "never"
        return Result()

    def early_score(self, context: RunContext) -> Steps:
        """Reports that scoring has begun, then works."""
        submission = submit(context)
        at = report_score()
        time.sleep(SHORT_S)
        submit(context)
        score_s = time.perf_counter() - ticker()._start - at
        write(PhaseEnded(SCORE, score_s, 0.0, 0, []))
        self.done(at, submission)
        yield "never"
        return Result()

    def early_done(self, context: RunContext) -> Steps:
        """Reports the end, then works, then exits."""
        submission = submit(context)
        at = report_score()
        write(PhaseEnded(SCORE, 0.0, 0.0, 0, []))
        write(self.claim(at, submission))
        time.sleep(SHORT_S)
        submit(context)
        os._exit(0)
        yield "never"

    def own_done(self, context: RunContext) -> Steps:
        """Writes its own `Done` before the harness's."""
        time.sleep(SHORT_S)
        write(self.claim(CLAIM_S, context.out / "submission.csv"))
        return (yield from self.finish(context))

    def late_file(self, context: RunContext) -> Steps:
        """Writes the submission during `score`, and resets its mtime so that the worker's check does not detect it."""
        submission = submit(context)
        before = submission.stat()
        yield SCORE
        time.sleep(0.2)
        submission.write_text("2\n")
        os.utime(submission, ns=(before.st_atime_ns, before.st_mtime_ns))
        return Result({"accuracy": 0.9}, 10, {}, (submission,))

    def claim(self, wall_s: float, submission: Path) -> Done:
        return Done(wall_s, 0.0, {"accuracy": 0.9}, 10, {}, [], {}, [submission.name])

    def done(self, wall_s: float, submission: Path) -> None:
        write(self.claim(wall_s, submission))
        os._exit(0)

    def truncated(self, context: RunContext) -> Steps:
        """Truncates the events file."""
        time.sleep(SHORT_S)
        file = ticker()._events
        os.ftruncate(file.fileno(), 0)
        return (yield from self.finish(context))

    def exit_zero(self, context: RunContext) -> Steps:
        os._exit(0)
        yield "never"

    def close_files(self, context: RunContext) -> Steps:
        os.closerange(0, 256)
        return (yield from self.finish(context))

    def delete_folder(self, context: RunContext) -> Steps:
        shutil.rmtree(Path(sys.argv[1]).parent)
        return (yield from self.finish(context))

    def ignore_signals(self, context: RunContext) -> Steps:
        import signal

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(60)
        yield "never"

    def flood(self, context: RunContext) -> Steps:  # type: ignore[override]
        """Writes 200 MB to stderr, then fails."""
        for _ in range(200):
            sys.stderr.write("x" * 999_999 + "\n")
            time.sleep(0.002)
        time.sleep(0.5)
        raise RuntimeError("flooded")
        yield "never"

    def daemon(self, context: RunContext) -> Steps:
        """Starts a daemon in a separate session that computes and outlives the run."""
        code = (
            "import os, sys, time\n"
            "if os.fork(): os._exit(0)\n"
            "os.setsid()\n"
            "open(sys.argv[1], 'w').write(str(os.getpid()))\n"
            "while time.process_time() < 0.5: pass\n"
            "open(sys.argv[1] + '-worked', 'w')\n"
            "time.sleep(300)"
        )
        pid = context.out / "pid"
        subprocess.run([sys.executable, "-S", "-c", code, str(pid)], check=True)
        while not pid.with_name("pid-worked").exists():
            time.sleep(0.02)
        time.sleep(SHORT_S)
        return (yield from self.finish(context))

    def hungry_forks(self, context: RunContext) -> Steps:
        """Uses 300 MB in six processes."""
        code = "x = bytearray(50 << 20); x[::4096] = b'x' * len(x[::4096]); import time; time.sleep(60)"
        for _ in range(6):
            subprocess.Popen([sys.executable, "-S", "-c", code])
        time.sleep(60)
        yield "never"

    def all_cores(self, context: RunContext) -> Steps:
        """Removes its affinity mask."""
        with suppress(OSError):
            os.sched_setaffinity(0, range(os.cpu_count() or 1))
        time.sleep(SHORT_S)
        return (yield from self.short(context))

    def spoil_data(self, context: RunContext) -> Steps:
        """Changes the input of the next run."""
        (context.data / "input.csv").write_text("other\n")
        return (yield from self.finish(context))

    def spoil_fit(self, context: RunContext) -> Steps:
        """Saves the answers for the next run."""
        (context.work / "answers").write_text("1\n")
        return (yield from self.finish(context))

    def lingering(self, context: RunContext) -> Steps:
        """Reports its end but does not exit."""
        threading.Thread(target=self.linger).start()
        return (yield from self.finish(context))

    def linger(self) -> None:
        while True:
            os._exit = lambda code: time.sleep(300)  # type: ignore[assignment]
            time.sleep(0.01)

    def no_submission(self, context: RunContext) -> Steps:
        """Reports a score of 1 without a submission."""
        yield SCORE
        return Result({"accuracy": 1.0}, 10)


TASK = Cheat()

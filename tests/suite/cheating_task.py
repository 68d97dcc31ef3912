"""Tasks that try to deceive the harness; the child process imports this module by name.

Each works for `WORK_S` seconds and tries to be ranked as if it had not, or to leave something behind.
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
from typing import Any

from fake_task import Fake

from buzzer.models.api.context import SCORE, Result, RunContext, Steps
from buzzer.suite.run.clock import Clock

WORK_S = 1.5  # where the harness's clock must tell
SHORT_S = 0.3  # where what was written tells
CLAIM_S = 0.1  # what a cheat says that its work took


def ticker() -> Clock:
    """The harness's own clock, which lives in the same process."""
    return next(x for x in gc.get_objects() if isinstance(x, Clock))


def write(**event: Any) -> None:
    ticker()._write(event)


def tell_score() -> float:
    """Write the lines of a `score` that begins now; the seconds since the start of the run."""
    clock = ticker()
    at = time.perf_counter() - clock._start
    write(event="end", name="predict", wall_s=at - (clock._begin - clock._start), cpu_s=0.0, peak_memory_bytes=0, laps=[])  # fmt: skip
    write(event="phase", name=SCORE, at_s=at, born_s=clock._start)
    return at


def hand_in(job: RunContext) -> Path:
    path = job.out / "submission.csv"
    path.write_text("1\n")
    return path


class Cheat(Fake):
    """`params["do"]` chooses the cheat."""

    def predict(self, job: RunContext) -> Steps:
        cheat: Callable[[RunContext], Steps] = getattr(self, job.params["do"].replace("-", "_"))
        yield "load"
        yield "predict"
        return (yield from cheat(job))

    def finish(self, job: RunContext) -> Steps:
        submission = hand_in(job)
        yield SCORE
        return Result({"accuracy": 0.9}, 10, {}, (submission,))

    def honest(self, job: RunContext) -> Steps:
        time.sleep(SHORT_S)
        return (yield from self.finish(job))

    def short(self, job: RunContext) -> Steps:
        """Honest and quick; tells its cores."""
        submission = hand_in(job)
        yield SCORE
        return Result({"accuracy": 0.9}, 10, {"cores": len(os.sched_getaffinity(0))}, (submission,))

    def moved_marks(self, job: RunContext) -> Steps:
        """Every mark of the clock moved by what the work took."""
        time.sleep(SHORT_S)
        for name in ("_start", "_begin", "_lap"):
            setattr(ticker(), name, getattr(ticker(), name) + SHORT_S - CLAIM_S)
        return (yield from self.finish(job))

    def moved_begin(self, job: RunContext) -> Steps:
        """Only the beginning of `score`, after its line was written."""
        time.sleep(SHORT_S)
        submission = hand_in(job)
        yield SCORE
        ticker()._begin -= SHORT_S - CLAIM_S
        return Result({"accuracy": 0.9}, 10, {}, (submission,))

    def slow_clock(self, job: RunContext) -> Steps:
        """A clock that goes at a tenth of the speed."""
        clock, real = ticker(), time.perf_counter
        from_s = real()
        clock._now = lambda: from_s + (real() - from_s) / 10
        time.perf_counter = clock._now
        time.sleep(WORK_S)
        return (yield from self.finish(job))

    def fast_clock(self, job: RunContext) -> Steps:
        """A clock that goes ten times too fast makes a slow baseline."""
        clock, real = ticker(), time.perf_counter
        from_s = real()
        clock._now = lambda: from_s + (real() - from_s) * 10
        time.sleep(SHORT_S)
        return (yield from self.finish(job))

    def backdated_score(self, job: RunContext) -> Steps:
        """The lines of `score` written by the task itself, with an earlier time."""
        clock, began = ticker(), ticker()._begin
        time.sleep(WORK_S)
        submission = hand_in(job)
        at = began - clock._start + CLAIM_S
        write(event="end", name="predict", wall_s=CLAIM_S, cpu_s=0.0, peak_memory_bytes=0, laps=[])
        write(event="phase", name=SCORE, at_s=at, born_s=clock._start)
        score_s = time.perf_counter() - clock._start - at
        write(event="end", name=SCORE, wall_s=score_s, cpu_s=0.0, peak_memory_bytes=0, laps=[])
        self.done(at, submission)
        yield "never"
        return Result()

    def early_score(self, job: RunContext) -> Steps:
        """Tells that scoring has begun, and works then."""
        submission = hand_in(job)
        at = tell_score()
        time.sleep(SHORT_S)
        hand_in(job)
        score_s = time.perf_counter() - ticker()._start - at
        write(event="end", name=SCORE, wall_s=score_s, cpu_s=0.0, peak_memory_bytes=0, laps=[])
        self.done(at, submission)
        yield "never"
        return Result()

    def early_done(self, job: RunContext) -> Steps:
        """Tells the end, works then, and leaves without a word."""
        submission = hand_in(job)
        at = tell_score()
        write(event="end", name=SCORE, wall_s=0.0, cpu_s=0.0, peak_memory_bytes=0, laps=[])
        write(**self.claim(at, submission))
        time.sleep(SHORT_S)
        hand_in(job)
        os._exit(0)
        yield "never"

    def own_done(self, job: RunContext) -> Steps:
        """A line of its own, then the harness's."""
        time.sleep(SHORT_S)
        write(**self.claim(CLAIM_S, job.out / "submission.csv"))
        return (yield from self.finish(job))

    def late_file(self, job: RunContext) -> Steps:
        """The submission is written while the clock stands still, with the time of before and a child's check that is blind."""
        submission = hand_in(job)
        before = submission.stat()
        yield SCORE
        time.sleep(0.2)
        submission.write_text("2\n")
        os.utime(submission, ns=(before.st_atime_ns, before.st_mtime_ns))
        return Result({"accuracy": 0.9}, 10, {}, (submission,))

    def claim(self, wall_s: float, submission: Path) -> dict[str, Any]:
        own = {"scores": {"accuracy": 0.9}, "rows": 10, "details": {}, "notes": [], "samples": {}}
        return own | {"event": "done", "wall_s": wall_s, "overhead_s": 0.0, "files": [submission.name]}

    def done(self, wall_s: float, submission: Path) -> None:
        write(**self.claim(wall_s, submission))
        os._exit(0)

    def truncated(self, job: RunContext) -> Steps:
        """What was told is wiped out, and told anew as the task likes it."""
        time.sleep(SHORT_S)
        file = ticker()._events
        os.ftruncate(file.fileno(), 0)
        return (yield from self.finish(job))

    def exit_zero(self, job: RunContext) -> Steps:
        os._exit(0)
        yield "never"

    def close_files(self, job: RunContext) -> Steps:
        os.closerange(0, 256)
        return (yield from self.finish(job))

    def delete_folder(self, job: RunContext) -> Steps:
        shutil.rmtree(Path(sys.argv[1]).parent)
        return (yield from self.finish(job))

    def ignore_signals(self, job: RunContext) -> Steps:
        import signal

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(60)
        yield "never"

    def flood(self, job: RunContext) -> Steps:  # type: ignore[override]
        """200 MB on stderr, then a failure."""
        for _ in range(200):
            sys.stderr.write("x" * 999_999 + "\n")
            time.sleep(0.002)
        time.sleep(0.5)
        raise RuntimeError("flooded")
        yield "never"

    def daemon(self, job: RunContext) -> Steps:
        """A process in a session of its own, whose parent is gone, works and outlives the run."""
        code = (
            "import os, sys, time\n"
            "if os.fork(): os._exit(0)\n"
            "os.setsid()\n"
            "open(sys.argv[1], 'w').write(str(os.getpid()))\n"
            "while time.process_time() < 0.5: pass\n"
            "open(sys.argv[1] + '-worked', 'w')\n"
            "time.sleep(300)"
        )
        pid = job.out / "pid"
        subprocess.run([sys.executable, "-S", "-c", code, str(pid)], check=True)
        while not pid.with_name("pid-worked").exists():
            time.sleep(0.02)
        time.sleep(SHORT_S)
        return (yield from self.finish(job))

    def hungry_forks(self, job: RunContext) -> Steps:
        """300 MB in six processes."""
        code = "x = bytearray(50 << 20); x[::4096] = b'x' * len(x[::4096]); import time; time.sleep(60)"
        for _ in range(6):
            subprocess.Popen([sys.executable, "-S", "-c", code])
        time.sleep(60)
        yield "never"

    def all_cores(self, job: RunContext) -> Steps:
        """The limit of cores taken off."""
        with suppress(OSError):
            os.sched_setaffinity(0, range(os.cpu_count() or 1))
        time.sleep(SHORT_S)
        return (yield from self.short(job))

    def spoil_data(self, job: RunContext) -> Steps:
        """The input of the next run changed."""
        (job.data / "input.csv").write_text("other\n")
        return (yield from self.finish(job))

    def spoil_fit(self, job: RunContext) -> Steps:
        """The answers kept for the next run."""
        (job.work / "answers").write_text("1\n")
        return (yield from self.finish(job))

    def lingering(self, job: RunContext) -> Steps:
        """A process that does not end after it has told its end."""
        threading.Thread(target=self.linger).start()
        return (yield from self.finish(job))

    def linger(self) -> None:
        while True:
            os._exit = lambda code: time.sleep(300)  # type: ignore[assignment]
            time.sleep(0.01)

    def no_submission(self, job: RunContext) -> Steps:
        """A score of 1 for nothing."""
        yield SCORE
        return Result({"accuracy": 1.0}, 10)


TASK = Cheat()

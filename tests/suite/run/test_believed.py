"""Tasks that try to deceive the harness are detected, and each of their runs has one valid record.

docs/architecture.md has a table of cheats, including those that cannot be detected.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from buzzer.models.api.context import Data
from buzzer.suite.budget import resolve
from buzzer.suite.records import integrity, record
from buzzer.suite.records.schema import Record
from buzzer.suite.run import events, limits, runner
from buzzer.suite.run.events import Done, PhaseEnded, PhaseStarted
from buzzer.suite.run.plan import TaskSelection, fit_run, predict_runs
from buzzer.suite.run.progress import RunProgress

Play = Callable[..., Record]
STILL_WORKING = "it was still working after"
NO_EVENT = "a line that is not an event or contradicts an earlier one"
AFTERWARDS = "scoring had begun, but submission.csv was written afterwards"
DETECTED = {  # cheat -> outcome, and part of the message
    "moved-marks": ("error", NO_EVENT),
    "moved-begin": ("error", NO_EVENT),
    "slow-clock": ("error", STILL_WORKING),
    "fast-clock": ("error", "it had ended after"),
    "backdated-score": ("error", STILL_WORKING),
    "early-score": ("error", AFTERWARDS),
    "early-done": ("error", AFTERWARDS),
    "late-file": ("error", AFTERWARDS),
    "own-done": ("error", NO_EVENT),
    "truncated": ("error", NO_EVENT),
    "exit-zero": ("error", "the process ended with exit code 0 in phase predict"),
    "close-files": ("error", "the process ended with exit code 1"),
    "ignore-signals": ("timeout", "the buzzer went in phase predict"),
    "hungry-forks": ("host-oom", "over the memory limit"),
    "spoil-data": ("error", "its inputs changed during the run: data/input.csv"),
    "spoil-fit": ("error", "answers"),
    "lingering": ("error", "still running 1 s after it had reported its end"),
}
# Tested in every run of the tests, under both enforcements. The others need BUZZER_SOAK.
QUICK = ("slow-clock", "late-file", "own-done", "spoil-fit")
BUDGETS = {"ignore-signals": "1c2g1s", "hungry-forks": "1c200m10s"}
THOROUGH = "BUZZER_SOAK" in os.environ
IMPORT_S = 0.3  # least seconds that the import of slow_import_task takes
DAEMON_CPU_S = 0.5  # CPU seconds that the daemon of cheating_task uses


@pytest.fixture
def play(
    tmp_path: Path,
    fake_path: None,
    data: Data,
    choose: Callable[..., TaskSelection],
    monkeypatch: pytest.MonkeyPatch,
) -> Play:
    """Runs a cheat once. Returns its record, which has been written and checked."""
    monkeypatch.setattr(limits, "LINGER_S", 1.0)

    def go(do: str, entry: str = "cheating_task:TASK") -> Record:
        honest = choose(do, BUDGETS.get(do, "1c2g30s"))
        choice = replace(honest, task=honest.task.model_copy(update={"entry": entry}))
        assert runner.fit(fit_run(choice), data, tmp_path / "cache", lambda phase, elapsed, part: None)
        run = predict_runs(choice)[0]
        r = runner.predict(run, data, tmp_path / "cache", tmp_path, (), lambda phase, elapsed, part: None)
        (problems,) = integrity.check([record.write(r, tmp_path / "checked")]).values()
        assert [p for p in problems if not p.startswith("data_fingerprint")] == []
        return r

    return go


@pytest.mark.parametrize("do", DETECTED)
def test_a_cheat_is_detected(play: Play, enforcement: str, do: str) -> None:
    if do not in QUICK and not THOROUGH:
        pytest.skip("with BUZZER_SOAK")
    outcome, message = DETECTED[do]
    r = play(do)
    assert (r.outcome, message in r.message) == (outcome, True), r.message
    assert (r.scores, r.gate.status) == ({}, "unscored")


@pytest.mark.skipif(not THOROUGH, reason="with BUZZER_SOAK")
@pytest.mark.parametrize("do", ["honest", "delete-folder", "flood"])
def test_a_clumsy_task_has_one_valid_record(play: Play, enforcement: str, do: str) -> None:
    """The outcome may be `ok` or `error`; that of an honest run is `ok`."""
    r = play(do)
    assert r.outcome == ("ok" if do == "honest" else r.outcome)
    assert r.outcome in ("ok", "error")


def test_work_at_import_is_in_the_wall_time(play: Play) -> None:
    r = play("short", "slow_import_task:TASK")
    assert r.outcome == "ok"
    assert r.phases[0].name == "start"
    assert r.wall_s > r.phases[0].wall_s > IMPORT_S


def test_a_daemon_is_counted_and_ended(play: Play, enforcement: str, tmp_path: Path) -> None:
    """Half a second of CPU time in a process that has left its parents."""
    r = play("daemon")
    assert r.outcome == "ok"
    assert r.cpu_s is not None
    assert DAEMON_CPU_S < r.cpu_s < 1.5 * (r.wall_s + (r.score_s or 0.0))  # it has one core
    assert not alive(int((tmp_path / "files" / r.run_id[:8] / "pid").read_text()))


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def most_cores() -> int:
    """The number of cores that a process can use here if it removes its mask."""
    mask = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    most = len(os.sched_getaffinity(0))
    os.sched_setaffinity(0, mask)
    return most


def test_cores_are_a_limit(play: Play, enforcement: str) -> None:
    """A process removes its mask of cores. A control group limits it all the same; a polled run is ended."""
    if most_cores() < 2:
        pytest.skip("needs two cores")
    r = play("short")
    assert (r.outcome, r.details["cores"]) == ("ok", 1)
    r = play("all-cores")
    if enforcement == "cgroups":
        assert (r.outcome, r.details["cores"]) == ("ok", 1)
    else:
        assert (r.outcome, "cores outside the budget's" in r.message) == ("error", True)


def phase(name: str, at_s: float, born_s: float = 100.0) -> str:
    return events.to_line(PhaseStarted(name, at_s, born_s))


def end(name: str, wall_s: float) -> str:
    return events.to_line(PhaseEnded(name, wall_s, 0.0, 0, []))


def done(wall_s: float) -> str:
    return events.to_line(Done(wall_s, 0.0, {"accuracy": 0.9}, 10, {}, [], {}, []))


GOOD = [phase("start", 0.0), end("start", 1.0), phase("predict", 1.0), end("predict", 2.0)]
GOOD += [phase("score", 3.0), end("score", 4.0), done(3.0)]
BAD = {
    "a phase within a phase": [*GOOD[:1], phase("predict", 1.0)],
    "a phase that ends twice": [*GOOD[:2], end("start", 1.0)],
    "an end of another phase": [*GOOD[:1], end("predict", 1.0)],
    "a gap between phases": [*GOOD[:2], phase("predict", 1.5)],
    "a phase that begins before the previous one ended": [*GOOD[:2], phase("predict", 0.5)],
    "another start of the process": [*GOOD[:2], phase("predict", 1.0, born_s=101.0)],
    "a phase after score": [*GOOD[:6], phase("predict", 7.0)],
    "the end while a phase runs": [*GOOD[:5], done(3.0)],
    "a shorter wall time": [*GOOD[:6], done(1.0)],
    "scoring as part of the wall time": [*GOOD[:6], done(7.0)],
    "a line after the end": [*GOOD, done(3.0)],
    "no phase at all": [end("start", 1.0)],
}


def progress_of(lines: list[str]) -> RunProgress:
    progress = RunProgress()
    for line in lines:
        progress.apply_line(line)
    return progress


def test_the_events_of_the_clock_are_accepted() -> None:
    progress = progress_of(GOOD)
    assert (progress.broken, progress.contradiction(99.9)) == (None, "")
    assert progress.done is progress.end is not None
    assert {name: p.wall_s for name, p in progress.phases.items()} == {
        "start": 1.0,
        "predict": 2.0,
        "score": 4.0,
    }


@pytest.mark.parametrize("what", BAD)
def test_contradictory_lines_are_rejected(what: str) -> None:
    progress = progress_of(BAD[what])
    assert progress.broken == BAD[what][-1].rstrip()[:80]
    assert progress.done is None


@pytest.mark.parametrize(
    ("unscored", "scored", "started", "problem"),
    [
        (102.9, 103.1, 99.9, ""),  # reported: from 100 to 103
        (103.4, 103.6, 99.9, ""),  # the line was written late
        (103.7, 103.9, 99.9, "it was still working after 3.70 s"),
        (None, 102.6, 99.9, ""),
        (None, 102.3, 99.9, "it had ended after 2.30 s"),
        (102.9, 103.1, 101.0, "its process began 1.00 s before"),
        (None, None, 90.0, ""),  # a busy machine, and a harness that never read the events
    ],
)
def test_times_are_compared_with_the_readings(
    unscored: float | None, scored: float | None, started: float, problem: str
) -> None:
    progress = progress_of(GOOD)
    progress.unscored_read_s, progress.scored_read_s = unscored, scored
    report = progress.contradiction(started)
    assert (problem in report, bool(report)) == (True, bool(problem))


def test_a_module_in_the_working_folder_is_not_run(
    tmp_path: Path, play: Play, enforcement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if `PYTHONPATH` has empty entries, which mean the working folder."""
    for name in ("json", "random", "numpy", "fake_task"):
        (tmp_path / f"{name}.py").write_text("import os; os._exit(42)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", os.environ["PYTHONPATH"], ""]))
    assert play("short").outcome == "ok"


KILLED = """
import os, subprocess, sys
from pathlib import Path
from buzzer.suite.budget import resolve
from buzzer.suite.run import limits, reaper
reaper.start()
os.environ["BUZZER_ENFORCEMENT"] = "polled"
code = "import os, sys; from buzzer.suite.run import worker; worker.die_with_parent(); print(os.getpid(), file=sys.stderr, flush=True); import time; time.sleep(300)"
limits.Polled(resolve("1c1g30s")).run([sys.executable, "-c", code], Path(sys.argv[1]), {})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of the parent")
def test_a_run_ends_with_its_harness_even_without_a_reaper(tmp_path: Path) -> None:
    stderr = tmp_path / "stderr"
    harness = subprocess.Popen([sys.executable, "-c", KILLED, str(stderr)], cwd=Path(__file__).parents[3])
    deadline = time.monotonic() + 30
    while not (stderr.exists() and stderr.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.05)
    run = int(stderr.read_text())
    for child in psutil.Process(harness.pid).children():
        if child.pid != run:
            child.kill()  # the reaper
    harness.kill()
    harness.wait()
    while alive(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(run)


def test_a_process_that_hangs_in_the_kernel_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process was killed but does not end."""
    real = limits.wait
    monkeypatch.setattr(limits, "wait", lambda process: None)
    monkeypatch.setattr(limits, "UNKILLABLE_S", 0.1)
    polled = limits.Polled(resolve("1c1g30s"))
    polled.stop()
    started: list[Any] = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[0])
    measured = polled.run(
        [sys.executable, "-S", "-c", "import time; time.sleep(60)"], tmp_path / "stderr", {}
    )
    assert (measured.reason, measured.exit_code) == (limits.Reason.KILLED, -9)
    deadline = time.monotonic() + 10
    while real(started[0]) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert started[0].returncode == -9

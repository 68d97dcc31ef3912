"""The CPU time of other processes is measured, and the inputs of every run are read into the page cache."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from buzzer.suite.records.schema import Record
from buzzer.suite.report import leaderboard, notes
from buzzer.suite.report.display import outcome_text
from buzzer.suite.run import counters, inputs, runner, supervise
from buzzer.suite.run.limits import Reason

Make = Callable[..., Record]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="counters of Linux")


@LINUX
def test_cpu_time_of_others_is_measured() -> None:
    """Another process uses 0.3 CPU seconds on one core."""
    core = min(os.sched_getaffinity(0))
    code = "import os, sys, time\nos.sched_setaffinity(0, [int(sys.argv[1])])\nwhile time.process_time() < 0.3: pass"
    neighbours = counters.Neighbours([core])
    subprocess.run([sys.executable, "-S", "-c", code, str(core)], check=True)
    taken_s = neighbours.cpu_s(0.0)
    assert taken_s is not None
    assert taken_s > 0.25
    others_s = neighbours.cpu_s(10.0**6)
    assert others_s == 0.0  # the CPU time of the run is not counted
    assert neighbours.cpu_s(None) is None


def test_all_but_idle_time_is_busy_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle time and waiting for disks do not count, nor does a guest's time, which is already part of `user`."""
    counted = {"user": 1, "nice": 2, "system": 4, "irq": 8, "softirq": 16, "steal": 32}
    others = {"idle": 100, "iowait": 200, "guest": 1, "guest_nice": 2}
    cores = [SimpleNamespace(**counted | others), SimpleNamespace(**dict.fromkeys(counted, 1000))]
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: cores)
    assert counters.busy_s([0]) == 63
    assert counters.busy_s([0, 1]) == 6063


def test_a_core_without_counters_gives_none() -> None:
    assert counters.busy_s([10**6]) is None
    assert counters.Neighbours([10**6]).cpu_s(0.0) is None


@pytest.mark.parametrize(
    ("others_s", "changes", "share"),
    [
        (None, {}, None),
        (0.09, {}, None),  # 4.5 % of 2 s
        (0.11, {}, 0.055),
        (
            0.09,
            {"wall_s": 0.5, "outcome": "error", "message": "x"},
            None,
        ),  # 18 %, but a few ticks of the counter
        (0.3, {"budget": {"name": "4c", "cores": 4, "memory_bytes": None, "time_s": None}}, None),
        (0.3, {"budget": {"name": "u", "cores": None, "memory_bytes": None, "time_s": None}}, 0.075),
    ],
)
def test_when_a_run_counts_as_disturbed(
    make_record: Make, others_s: float | None, changes: dict[str, object], share: float | None
) -> None:
    """The record has 2 s of wall time on one core of two."""
    r = make_record(others_cpu_s=others_s, **changes)
    assert r.disturbed == (None if share is None else pytest.approx(share))


def test_a_disturbed_run_is_always_shown_with_a_note(make_record: Make) -> None:
    quiet, noisy = make_record(), make_record(run_id="b" * 32, others_cpu_s=1.0)
    note = "disturbed: others took up to 50% of the cores in 1 run of torch_eager fp32 1c2g30s"
    assert note in notes.board_notes([quiet, noisy])
    assert note in leaderboard.markdown([quiet, noisy])
    assert note in notes.bench_notes([quiet, noisy])
    assert "disturbed: others took 50% of its cores" in outcome_text(noisy)
    assert not any("disturbed" in line for line in [*notes.board_notes([quiet]), outcome_text(quiet)])


def test_a_record_shows_others_and_the_page_cache(predict: Callable[..., Record]) -> None:
    r = predict("work")
    assert r.page_cache == "warm"
    assert (r.others_cpu_s is not None) == (sys.platform == "linux")


def bytes_read() -> int:
    """Bytes that this process has read from files or the page cache."""
    counters = Path("/proc/self/io")
    return int(counters.read_text().split()[1]) if counters.exists() else 0


def test_inputs_are_read_unless_they_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part").mkdir()
    for name in ("a.csv", "part/b.csv"):
        (tmp_path / name).write_bytes(b"x" * 5_000_000)
    before = inputs.state([tmp_path])
    assert {path.name: size for path, (size, *_) in before.items()} == {
        "a.csv": 5_000_000,
        "b.csv": 5_000_000,
    }
    seen = bytes_read()
    assert inputs.warm(before)
    if sys.platform == "linux":
        assert bytes_read() - seen >= 10_000_000
    monkeypatch.setattr(inputs, "SHARE", 0.0)
    assert not inputs.warm(before)


@pytest.mark.parametrize("way", ["write", "touch back", "remove", "add", "replace"])
def test_changed_inputs_are_detected(tmp_path: Path, way: str) -> None:
    file = tmp_path / "a.csv"
    file.write_text("1\n")
    before = inputs.state([tmp_path])
    assert inputs.changed(before, [tmp_path]) == []
    time.sleep(0.02)  # longer than a tick of the file system's clock
    match way:
        case "write":
            file.write_text("22\n")
        case "touch back":  # same size, same mtime
            stat = file.stat()
            file.write_text("2\n")
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        case "remove":
            file.unlink()
        case "add":
            (tmp_path / "b.csv").write_text("1\n")
        case "replace":
            (tmp_path / "b").write_text("1\n")
            (tmp_path / "b").replace(file)
    assert inputs.changed(before, [tmp_path]) == [f"{tmp_path.name}/{'b' if way == 'add' else 'a'}.csv"]


def test_a_stopped_run_that_changed_its_inputs_is_interrupted(
    predict: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "changed", lambda before, folders: ["data/input.csv"])
    assert predict("work").message == "its inputs changed during the run: data/input.csv"

    def stop(*arguments: Any) -> Any:
        measured, age_s = follow(*arguments)
        return replace(measured, reason=Reason.INTERRUPTED), age_s

    follow = supervise.supervise
    monkeypatch.setattr(supervise, "supervise", stop)
    assert runner.interrupted(predict("work"))

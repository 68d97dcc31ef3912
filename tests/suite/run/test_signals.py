"""A signal ends a suite in order: the interrupted run has one record, no process or folder is left, and no further run starts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from buzzer.suite.records import record

HERE = Path(__file__).resolve().parents[1]
WAYS = {
    "Ctrl-C": [signal.SIGINT],
    "Ctrl-C twice": [signal.SIGINT, signal.SIGINT],
    "Ctrl-C five times": [signal.SIGINT] * 5,
    "SIGTERM": [signal.SIGTERM],
    "SIGHUP": [signal.SIGHUP],
}


def begun(home: Path, **variables: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a harness with its folders below `home`. Returns it in the middle of a run, and the pid of a process that the run has started."""
    (home / "tmp").mkdir()
    env = os.environ | {
        "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}",
        "BUZZER_CACHE": str(home / "cache"),
        "TMPDIR": str(home / "tmp"),
    }
    command = [sys.executable, str(HERE / "signal_harness.py"), str(home / "out"), "spawn", "3"]
    harness = subprocess.Popen(command, env=env | variables, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (pids := list(home.glob("out/files/*/pid"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.1)
    return harness, int(pids[0].read_text())


@pytest.mark.parametrize("way", WAYS)
def test_a_signal_ends_the_suite_in_order(tmp_path: Path, way: str) -> None:
    out, temporary = tmp_path / "out", tmp_path / "tmp"
    harness, grandchild = begun(tmp_path)
    for number in WAYS[way]:
        harness.send_signal(number)
        time.sleep(0.05)
    harness.wait(timeout=60)
    (r,) = [r for r in map(record.read, record.paths([out])) if r.job == "predict"]
    assert r.outcome == "error"
    assert r.message == "interrupted in phase predict"
    assert not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("enforced", ["cgroups", "polled"])
def test_a_killed_harness_leaves_nothing_behind(tmp_path: Path, enforced: str) -> None:
    """After `kill -9` there is no process, no temporary folder, and no file of a run without a record."""
    out, temporary = tmp_path / "out", tmp_path / "tmp"
    harness, grandchild = begun(tmp_path, BUZZER_ENFORCEMENT=enforced)
    deadline = time.monotonic() + 60
    assert list(temporary.iterdir()) != []
    harness.kill()
    harness.wait()
    while left(temporary, out, grandchild) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left(temporary, out, grandchild) == []


def left(temporary: Path, out: Path, grandchild: int) -> list[str]:
    alive = psutil.pid_exists(grandchild) and psutil.Process(grandchild).status() != psutil.STATUS_ZOMBIE
    return [str(p) for p in [*temporary.iterdir(), *out.glob("files/*")]] + ["a process"] * alive


def test_a_killed_generator_leaves_no_unfinished_data(tmp_path: Path) -> None:
    """It has fewer rows than a generation that can go on (`generator.RESUMABLE_ROWS`)."""
    command = [
        sys.executable,
        "-m",
        "buzzer",
        "data",
        "generate",
        "recsys2021",
        "--scale",
        "0.004",
        "--jobs",
        "1",
    ]
    env = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    generator = subprocess.Popen(
        [*command, "--out", str(tmp_path / "data")], env=env, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".data.*.partial/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    generator.kill()
    generator.wait()
    while any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []

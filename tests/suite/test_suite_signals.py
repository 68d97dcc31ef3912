"""A signal ends a suite in order: one record of the run that it struck, no process and no folder left, nothing run after it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from buzzer.suite import record

HERE = Path(__file__).resolve().parent
WAYS = {
    "Ctrl-C": [signal.SIGINT],
    "Ctrl-C twice": [signal.SIGINT, signal.SIGINT],
    "Ctrl-C five times": [signal.SIGINT] * 5,
    "SIGTERM": [signal.SIGTERM],
    "SIGHUP": [signal.SIGHUP],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_signal_ends_the_suite_in_order(tmp_path: Path, way: str) -> None:
    out, temporary = tmp_path / "out", tmp_path / "tmp"
    temporary.mkdir()
    env = os.environ | {
        "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}",
        "BUZZER_CACHE": str(tmp_path / "cache"),
        "TMPDIR": str(temporary),
    }
    command = [sys.executable, str(HERE / "signal_harness.py"), str(out), "spawn"]
    harness = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (told := list(out.glob("files/*/pid"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.1)
    grandchild = int(told[0].read_text())
    for number in WAYS[way]:
        harness.send_signal(number)
        time.sleep(0.05)
    harness.wait(timeout=60)
    (r,) = [r for r in record.read_good(out) if r.job == "predict"]
    assert r.outcome == "error"
    assert r.message == "interrupted in phase predict"
    assert not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE
    assert list(temporary.iterdir()) == []

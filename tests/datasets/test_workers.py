"""Work that is split over processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from buzzer.datasets.workers import in_order, usable_cores
from buzzer.errors import DataError

SCRIPT = """
import time
from buzzer.datasets.workers import in_order

def slow(n):
    time.sleep(60)

if __name__ == "__main__":
    print("started", flush=True)
    list(in_order(slow, range(4), 2))
"""


def square(n: int) -> int:
    return n * n


def fail(n: int) -> int:
    if n == 2:
        raise OSError(28, "No space left on device")
    return n


def die(n: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return n


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_order(jobs: int) -> None:
    assert list(in_order(square, range(9), jobs)) == [n * n for n in range(9)]
    with pytest.raises(OSError, match="No space left"):
        list(in_order(fail, range(9), jobs))
    assert usable_cores() >= 1


def test_a_killed_process_is_reported() -> None:
    with pytest.raises(DataError, match="was killed"):
        list(in_order(die, range(3), 2))


def test_processes_end_with_a_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        deadline = time.monotonic() + 30
        workers: list[psutil.Process] = []
        while (
            len(workers) < 3 and time.monotonic() < deadline
        ):  # two workers and multiprocessing's resource tracker
            workers = psutil.Process(process.pid).children(recursive=True)
            time.sleep(0.05)
        time.sleep(2)  # until the workers have imported their modules
        process.kill()
    assert len(workers) >= 2
    assert psutil.wait_procs(workers, timeout=20)[1] == []

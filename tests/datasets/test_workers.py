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

# A user's script: it has no `if __name__ == "__main__"`.
SCRIPT = """
import time
from buzzer.datasets.workers import in_order

print("started", flush=True)
print(list(in_order(time.sleep, [{seconds}] * 4, 2)))
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


ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.parametrize("file", ["script.py", ""])
def test_a_script_without_a_main_guard_runs_once(tmp_path: Path, file: str) -> None:
    script = SCRIPT.format(seconds=0)
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, tmp_path / file] if file else [sys.executable, "-"]
    ended = subprocess.run(
        command, check=False, input=script, capture_output=True, text=True, env=ENVIRONMENT, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "started\n[None, None, None, None]\n", "")


def test_processes_end_with_a_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(seconds=60))
    with subprocess.Popen(
        [sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, env=ENVIRONMENT
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

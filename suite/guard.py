"""Ends what a harness that was killed has left behind: a small process of its own that waits for the harness to go.

A harness that ends by itself leaves nothing. After `kill -9` nobody else would end its run: the run's processes carry
the harness's mark in their environment, by which the guard finds them (Linux), and it was told of their control groups.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

VARIABLE = "BUZZER_HARNESS"


@cache
def start() -> tuple[str, IO[bytes]]:
    """Start this harness's guard: the mark for the environment of its runs, and the pipe on which it listens."""
    made = uuid.uuid4().hex
    command = [sys.executable, "-IS", str(Path(__file__).resolve()), made]
    # A session of its own: Ctrl-C is for the harness, which ends its run in order.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    process.returncode = 0  # it outlives this process on purpose; do not warn of that
    assert process.stdin is not None
    return made, process.stdin


def mark() -> str:
    return start()[0]


def watch(executor: Any, keep: Callable[[Any], None]) -> None:
    """Tell the guard, and `keep`, of every control group that BenchExec's RunExecutor makes, as soon as it is there."""
    make, (_, pipe) = executor._setup_cgroups, start()

    def told(*args: Any, **named: Any) -> Any:
        made = make(*args, **named)
        with suppress(OSError):  # a guard that somebody ended is no reason to end the run
            pipe.write(b"".join(f"{path}\n".encode() for path in made.paths))
            pipe.flush()
        keep(made)
        return made

    executor._setup_cgroups = told


def members(made: str) -> list[int]:
    """Processes with the mark in their environment."""
    found = []
    sought = f"{VARIABLE}={made}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if sought in (entry / "environ").read_bytes().split(b"\0") and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def clean(made: str, groups: Iterable[Path]) -> None:
    """Kill every marked process, then remove the control groups; a group is busy until its last process is gone."""
    left = list(groups)
    for _ in range(100):
        alive = members(made)
        for pid in alive:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for group in left:
            with suppress(OSError):
                group.rmdir()
        left = [group for group in left if group.exists()]
        if not alive and not left:
            return
        time.sleep(0.05)


if __name__ == "__main__":
    told = sys.stdin.read().splitlines()  # returns when the harness has gone
    clean(sys.argv[1], [Path(line) for line in told])

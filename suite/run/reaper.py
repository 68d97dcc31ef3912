"""Ends what a harness that was killed has left behind: a small process of its own that waits for the harness to go.

A harness that ends by itself leaves nothing. After `kill -9` nobody else would end its run: the run's processes carry
the harness's mark in their environment, by which the guard finds them (Linux), and it was told of their control groups and of the
files that would have gone with them. It is told by lines: `group PATH`, `+ PATH` and, when a file is to stay, `- PATH`.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
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


def token() -> str:
    return start()[0]


def tell(word: str, paths: Iterable[Path | str]) -> None:
    """Write lines to the guard. One that somebody ended is no reason to end the run."""
    _, pipe = start()
    with suppress(OSError):
        told = [os.fsencode(path) for path in paths]
        pipe.write(b"".join(word.encode() + b" " + path + b"\n" for path in told if b"\n" not in path))
        pipe.flush()


@contextmanager
def swept(path: Path) -> Iterator[Path]:
    """A file or folder that the guard removes if the harness is killed within the block."""
    tell("+", [path.absolute()])
    try:
        yield path
    finally:
        tell("-", [path.absolute()])


def watch(executor: Any, keep: Callable[[Any], None]) -> None:
    """Tell the guard, and `keep`, of every control group that BenchExec's RunExecutor makes, as soon as it is there; and the guard
    of its temporary folders."""
    make, begin = executor._setup_cgroups, executor._start_execution

    def made_groups(*args: Any, **named: Any) -> Any:
        made = make(*args, **named)
        tell("group", made.paths)
        keep(made)
        return made

    def begun(*args: Any, **named: Any) -> Any:
        tell("+", [named["temp_dir"]])
        return begin(*args, **named)

    executor._setup_cgroups, executor._start_execution = made_groups, begun


def members(made: str) -> list[int]:
    """Processes with the mark in their environment."""
    found = []
    sought = f"{VARIABLE}={made}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if sought in (entry / "environ").read_bytes().split(b"\0") and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def clean(made: str, groups: Iterable[Path], files: Iterable[Path]) -> None:
    """Kill every marked process, then remove the control groups and files; a group is busy until its last process is gone."""
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
            break
        time.sleep(0.05)
    for path in files:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def main(made: str, told: Iterable[bytes]) -> None:
    groups, files = [], dict[Path, None]()
    for line in told:  # ends when the harness has gone
        word, _, path = line.rstrip(b"\n").partition(b" ")
        found = Path(os.fsdecode(path))
        if word == b"group":
            groups.append(found)
        elif word == b"+":
            files[found] = None
        else:
            files.pop(found, None)
    clean(made, groups, files)


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin.buffer)

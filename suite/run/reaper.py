"""Kills leftover children when the harness dies. The reaper is a small process that waits for the end of the harness.

A harness that ends by itself cleans up. After `kill -9` its run would continue. The processes of a run have the harness's token in
their environment, by which the reaper finds them (Linux). The harness sends the reaper the control groups of its runs and its
temporary files, one per line: `group PATH`, `+ PATH` and, for a file that must not be removed any more, `- PATH`.
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
    """Start the reaper of this process, once. Returns the token for the environment of its runs, and the pipe that the reaper reads."""
    token = uuid.uuid4().hex
    command = [sys.executable, "-IS", str(Path(__file__).resolve()), token]
    # In its own session, so that Ctrl-C reaches only the harness, which then ends its run in order.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    process.returncode = 0  # it outlives this process on purpose, so Python must not warn
    assert process.stdin is not None
    return token, process.stdin


def token() -> str:
    """The token of this harness: the value of `VARIABLE` in the environment of its runs."""
    return start()[0]


def send(word: str, paths: Iterable[Path | str]) -> None:
    """Send lines to the reaper. If the reaper was killed, nothing is raised: the run continues."""
    _, pipe = start()
    with suppress(OSError):
        names = [os.fsencode(path) for path in paths]
        pipe.write(b"".join(word.encode() + b" " + name + b"\n" for name in names if b"\n" not in name))
        pipe.flush()


@contextmanager
def swept(path: Path) -> Iterator[Path]:
    """A file or folder that the reaper removes if the harness is killed within the block."""
    send("+", [path.absolute()])
    try:
        yield path
    finally:
        send("-", [path.absolute()])


def register(executor: Any, on_group: Callable[[Any], None]) -> None:
    """Patch BenchExec's RunExecutor to send its control groups and temporary folders to the reaper. `on_group` is called with each new group."""
    setup, start_execution = executor._setup_cgroups, executor._start_execution

    def setup_and_send(*args: Any, **named: Any) -> Any:
        group = setup(*args, **named)
        send("group", group.paths)
        on_group(group)
        return group

    def send_and_start(*args: Any, **named: Any) -> Any:
        send("+", [named["temp_dir"]])
        return start_execution(*args, **named)

    executor._setup_cgroups, executor._start_execution = setup_and_send, send_and_start


def members(token: str) -> list[int]:
    """The pids of the processes with the token in their environment."""
    pids = []
    variable = f"{VARIABLE}={token}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if variable in (entry / "environ").read_bytes().split(b"\0") and int(entry.name) != os.getpid():
                pids.append(int(entry.name))
    return pids


def clean(token: str, groups: Iterable[Path], files: Iterable[Path]) -> None:
    """Kill every process with the token, then remove the control groups and files. A group can be removed once its last process has ended."""
    left = list(groups)
    for _ in range(100):
        alive = members(token)
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


def main(token: str, lines: Iterable[bytes]) -> None:
    """Read the harness's lines until the harness has ended, then clean up."""
    groups, files = [], dict[Path, None]()
    for line in lines:
        word, _, name = line.rstrip(b"\n").partition(b" ")
        path = Path(os.fsdecode(name))
        if word == b"group":
            groups.append(path)
        elif word == b"+":
            files[path] = None
        else:
            files.pop(path, None)
    clean(token, groups, files)


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin.buffer)

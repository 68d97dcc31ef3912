"""Commands as people use them: in terminals of 80 and 120 columns, with NO_COLOR, and in a pipe."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from rich.cells import cell_len

ROOT = Path(__file__).resolve().parents[3]
NEXT = "---- next command ----"
COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-7]|9[0-7]|38;5)[0-9;]*m")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COMMANDS = (
    ["--help"],
    ["run", "--help"],
    ["list"],
    ["compare", "booking", "--from", "results/booking", "--engine", "pandas"],
    ["run", "booking", "--budget", "1c2g5m", "--on-unmet-budget", "warn", "--dry-run"],
)


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """The environment of a user's shell, with an empty cache."""
    unset = ("NO_COLOR", "COLUMNS", "FORCE_COLOR", "BUZZER_DATA")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    return env | {"PYTHONPATH": str(ROOT), "BUZZER_CACHE": str(tmp_path), "TERM": "xterm-256color"} | more


# Runs commands one after the other in one process, with a line before each.
ALL = f"""
import json, sys
from buzzer.suite.cli import main
for words in json.loads(sys.argv[1]):
    print({NEXT!r}, flush=True)
    sys.argv = ["buzzer", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, words
"""


def in_terminal(arguments: list[str], columns: int, env: dict[str, str]) -> str:
    """All output of Python whose three streams are a terminal of this width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        output = b""
        while True:
            try:
                output += (part := os.read(ours, 1 << 16))
            except OSError:  # the command has ended
                break
            if not part:
                break
    os.close(ours)
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.mark.parametrize("columns", [80, 120])
def test_output_fits_the_terminal(tmp_path: Path, columns: int) -> None:
    plain = environment(tmp_path, NO_COLOR="1")
    before, *texts = in_terminal(["-c", ALL, json.dumps(COMMANDS)], columns, plain).split(NEXT)
    assert before == ""
    for arguments, text in zip(COMMANDS, texts, strict=True):
        assert not COLOUR.search(text), arguments
        lines = ESCAPE.sub("", text).replace("\r", "").splitlines()
        assert len(lines) > 5, arguments
        assert max(map(cell_len, lines)) <= columns, arguments


def test_a_terminal_has_colours_and_a_pipe_has_no_escapes(tmp_path: Path) -> None:
    assert COLOUR.search(in_terminal(["-m", "buzzer", "run", "--help"], 80, environment(tmp_path)))
    command = [sys.executable, "-m", "buzzer", "compare", "booking", "--from", "results/booking"]
    piped = subprocess.run(
        command, cwd=ROOT, env=environment(tmp_path, COLUMNS="80"), capture_output=True, text=True, check=True
    )
    assert "\x1b" not in piped.stdout + piped.stderr
    header = next(line for line in piped.stdout.splitlines() if line.startswith(" variant"))
    assert {"outcome", "wall s"} <= set(re.split(r"\s{2,}", header.strip()))

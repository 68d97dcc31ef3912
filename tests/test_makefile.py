"""What make hands on to programs is what the user wrote, whatever the shell would make of it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ODD = """it's a "name"; touch struck; `touch struck` & #"""


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """An environment whose python only prints its arguments, with all extras installed."""
    if shutil.which("make") is None:
        pytest.skip("no make here")
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    for extra in ("test", "gpu"):
        (tmp_path / f".{extra}").touch()
        os.utime(tmp_path / f".{extra}", (2**32, 2**32))  # newer than pyproject.toml
    return tmp_path


def make(tools: Path, *arguments: str) -> list[str]:
    """Arguments of the program that make ran."""
    command = ["make", "-s", "-f", str(ROOT / "Makefile"), f"VENV={tools}", f"GPU_PYTHON={tools}/bin/python"]
    shutil.copy(ROOT / "pyproject.toml", tools)
    os.utime(tools / "pyproject.toml", (0, 0))
    done = subprocess.run([*command, *arguments], cwd=tools, capture_output=True, text=True, check=True)
    assert not (tools / "struck").exists()
    return done.stdout.splitlines()


def test_the_names_of_gpu_suite_are_no_shell(tools: Path) -> None:
    told = make(tools, "gpu-suite", f"ONLY={ODD}", f"OUT={ODD} out", "MINUTES=9; touch struck")
    assert told[told.index("--only") + 1] == ODD
    assert told[told.index("--out") + 1] == f"{ODD} out"
    assert told[told.index("--minutes") + 1] == "9; touch struck"
    assert make(tools, "gpu-suite")[-2:] == ["--minutes", "30"]


def test_the_names_of_rehearsal_are_no_shell(tools: Path) -> None:
    told = make(tools, "rehearsal", f"MACHINE={ODD}", f"CALLS={ODD}", "REHEARSAL=--stretch 20")
    assert told[told.index("--python") + 1] == ODD
    assert told[told.index("--calls") + 1] == ODD
    assert told[-2:] == ["--stretch", "20"]

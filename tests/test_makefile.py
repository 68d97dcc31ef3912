"""make passes the user's values to programs unchanged, even if they contain special characters of the shell."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from buzzer.datasets.workers import usable_cores

ROOT = Path(__file__).parents[1]
SPECIAL = """it's a "name"; touch injected; `touch injected` & #"""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment with all extras marked as installed, whose python prints its arguments."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    for extra in ("test", "gpu"):
        (tmp_path / f".{extra}").touch()
        os.utime(tmp_path / f".{extra}", (2**32, 2**32))  # newer than pyproject.toml
    return tmp_path


def make(environment: Path, *arguments: str) -> list[str]:
    """The arguments of the program that make runs."""
    command = ["make", "-s", "-f", str(ROOT / "Makefile"), f"VENV={environment}"]
    shutil.copy(ROOT / "pyproject.toml", environment)
    os.utime(environment / "pyproject.toml", (0, 0))
    outer = ("MAKEFLAGS", "MFLAGS", "WORKERS")  # of the make that runs these tests
    process = subprocess.run(
        [*command, f"GPU_PYTHON={environment}/bin/python", *arguments],
        cwd=environment, capture_output=True, text=True, check=True,
        env={name: value for name, value in os.environ.items() if name not in outer},
    )  # fmt: skip
    assert not (environment / "injected").exists()
    return process.stdout.splitlines()


def test_gpu_suite_passes_names_unchanged(environment: Path) -> None:
    arguments = make(
        environment, "gpu-suite", f"ONLY={SPECIAL}", f"OUT={SPECIAL} out", "MINUTES=9; touch injected"
    )
    assert arguments[arguments.index("--only") + 1] == SPECIAL
    assert arguments[arguments.index("--out") + 1] == f"{SPECIAL} out"
    assert arguments[arguments.index("--minutes") + 1] == "9; touch injected"
    assert make(environment, "gpu-suite")[-2:] == ["--minutes", "30"]


def test_rehearsal_passes_names_unchanged(environment: Path) -> None:
    arguments = make(
        environment, "rehearsal", f"MACHINE={SPECIAL}", f"CALLS={SPECIAL}", "REHEARSAL=--stretch 20"
    )
    assert arguments[arguments.index("--python") + 1] == SPECIAL
    assert arguments[arguments.index("--calls") + 1] == SPECIAL
    assert arguments[-2:] == ["--stretch", "20"]


def test_there_is_one_test_process_more_than_cores_by_default(environment: Path) -> None:
    arguments = make(environment, "test", "PYTEST_ARGS=tests/suite -x")
    assert int(arguments[arguments.index("-n") + 1]) == usable_cores() + 1
    assert arguments[-2:] == ["tests/suite", "-x"]
    arguments = make(environment, "test", "WORKERS=1")
    assert arguments[arguments.index("-n") + 1] == "1"

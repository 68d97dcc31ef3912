"""The core install, without torch and data frames: records can be read, and what cannot be done says which extra it needs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from buzzer.extras import EXTRAS

ROOT = Path(__file__).resolve().parent.parent
BOOKING = next((ROOT / "results" / "booking").rglob("*-predict-*.json"))
# Runs the command line as if the packages in the first argument were not installed.
WITHOUT = """
import importlib.util, sys
missing, sys.argv = sys.argv[1].split(","), ["buzzer", *sys.argv[2:]]
class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name.partition(".")[0] in missing else found(name, *more)
sys.meta_path.insert(0, Refusing())
from buzzer.suite.cli import main
main()
"""


def core(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in an installation without the packages of the extras."""
    command = [sys.executable, "-c", WITHOUT, ",".join(EXTRAS), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["list"], "recsys2021-winners"),
        (["report", "results/booking"], "# Leaderboard"),
        (["compare", "booking", "--from", "results/booking"], "against plain"),
        (["show", str(BOOKING)], "gate: "),
        (["data", "info", "booking"], "# Booking.com"),
        (["env"], "pip install 'buzzer[run]'"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_records_can_be_read(arguments: list[str], shown: str) -> None:
    done = core(*arguments)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


def test_records_can_be_checked() -> None:
    done = core("check", "results/booking")
    assert done.returncode == 0, done.stdout
    assert re.search(r"(\d+) of \1 records are valid", done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "booking"],
        ["run", "--dry-run"],
        ["compare", "booking"],
        ["bench", "bert-base"],
        ["frontier"],
        ["data", "generate", "booking", "--out", "unused"],
        ["check", "results/booking", "--data", "booking=."],
    ],
    ids=" ".join,
)
def test_what_needs_more_says_which_extra(arguments: list[str]) -> None:
    done = core(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("hint: pip install 'buzzer[run]'") == 1
    assert "Traceback" not in done.stderr


def test_the_table_of_packages_is_that_of_pyproject() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        re.split(r"[<>=\[]", requirement)[0]: extra
        for extra in ("run", "plots")
        for requirement in extras[extra]
    }
    assert named == EXTRAS

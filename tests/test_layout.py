"""The packaging's promises: the package list is the tree, nothing shadows a library, the links resolve."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("suite", "engine", "models", "datasets", "configs")
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def packages_in_the_tree() -> set[str]:
    """Folders that hold Python files, as packages; datasets itself is a namespace whose files count too."""
    found = {"buzzer"}
    for room in ROOMS:
        for source in (ROOT / room).rglob("*.py"):
            found.add(".".join(("buzzer", *source.parent.relative_to(ROOT).parts)))
    return found


def test_the_package_list_is_the_tree() -> None:
    assert set(SETUPTOOLS["packages"]) == packages_in_the_tree() | {"buzzer.datasets"}


def test_every_room_is_mapped() -> None:
    assert SETUPTOOLS["package-dir"] == {"buzzer": "buzzer"} | {f"buzzer.{room}": room for room in ROOMS}


def test_hugging_face_datasets_is_not_shadowed() -> None:
    assert not (ROOT / "datasets" / "__init__.py").exists()


@pytest.mark.parametrize("room", ROOMS)
def test_links_for_type_checkers_resolve(room: str) -> None:
    link = ROOT / "buzzer" / room
    assert link.is_symlink()
    assert link.resolve() == ROOT / room


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_imported_from_the_checkout_once(room: str) -> None:
    code = f"import buzzer, importlib; print(list(importlib.import_module('buzzer.{room}').__path__)[0])"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert Path(out.strip()) == ROOT / room


LIGHT = (
    ["list"],
    ["--help"],
    ["data", "info", "booking"],
    ["run", "--dry-run"],
    ["run", "recsys2021", "sigir-ecom-task1", "--dry-run"],
)


@pytest.mark.parametrize("arguments", LIGHT)
def test_light_verbs_import_no_model(arguments: list[str]) -> None:
    """Heavy imports belong inside the command that needs them."""
    code = (
        "import sys\nfrom buzzer.suite.cli import app\n"
        f"app({arguments!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'polars', 'pandas', 'onnxruntime', 'xgboost'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

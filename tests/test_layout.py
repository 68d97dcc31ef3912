"""Packaging: the package list equals the tree, no package hides a library, and the links resolve."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("suite", "engine", "models", "datasets", "configs")
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def packages_in_the_tree() -> set[str]:
    """All folders that hold Python files, as package names."""
    packages = {"buzzer"}
    for folder in FOLDERS:
        for source in (ROOT / folder).rglob("*.py"):
            packages.add(".".join(("buzzer", *source.parent.relative_to(ROOT).parts)))
    return packages


def test_the_package_list_is_the_tree() -> None:
    assert set(SETUPTOOLS["packages"]) == packages_in_the_tree() | {"buzzer.datasets"}


def test_every_folder_is_mapped() -> None:
    assert SETUPTOOLS["package-dir"] == {"buzzer": "buzzer"} | {
        f"buzzer.{folder}": folder for folder in FOLDERS
    }


def test_hugging_face_datasets_is_not_shadowed() -> None:
    assert not (ROOT / "datasets" / "__init__.py").exists()


@pytest.mark.parametrize("folder", FOLDERS)
def test_links_for_type_checkers_resolve(folder: str) -> None:
    link = ROOT / "buzzer" / folder
    assert link.is_symlink()
    assert link.resolve() == ROOT / folder


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_are_imported_from_the_checkout(folder: str) -> None:
    code = f"import buzzer, importlib; print(list(importlib.import_module('buzzer.{folder}').__path__)[0])"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert Path(out.strip()) == ROOT / folder


LIGHT_COMMANDS = (
    ["list"],
    ["--help"],
    ["data", "info", "booking"],
    ["run", "--dry-run"],
    ["run", "recsys2021", "sigir-ecom-task1", "--dry-run"],
)


@pytest.mark.parametrize("arguments", LIGHT_COMMANDS)
def test_light_commands_import_no_heavy_library(arguments: list[str]) -> None:
    """A command imports a heavy library only if it needs it."""
    code = (
        "import sys\nfrom buzzer.suite.cli import app\n"
        f"app({arguments!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'polars', 'pandas', 'onnxruntime', 'xgboost'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr

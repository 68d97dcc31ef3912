"""Tests docs/tutorial.md: installs the task of the tutorial and runs its commands in order; each prints what the page shows."""

import shutil
from collections.abc import Iterator

import pytest

from tests.recipes import ROOT, Environment, check_commands, environment_with, recipes

pytestmark = pytest.mark.slow
PAGE = ROOT / "docs" / "tutorial.md"
RECIPES = recipes(PAGE)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    folder = tmp_path_factory.mktemp("tutorial")
    yield environment_with(RECIPES.values(), folder)
    shutil.rmtree(folder, ignore_errors=True)


def test_the_tutorial_does_what_it_says(environment: Environment) -> None:
    for recipe in RECIPES.values():
        if recipe.of("text"):
            check_commands(recipe, environment)
    first = environment.folder / "first"
    assert (first / "leaderboard.md").is_file() and (environment.folder / "first.html").is_file()
    runs = [r for r in environment.records() if r.job == "predict"]
    assert {(r.task, r.engine, r.backend, r.gate.status) for r in runs} == {
        ("busy-hours", "pandas", "torch_eager", "reference"),
        ("busy-hours", "polars", "torch_eager", "passed"),
        ("busy-hours", "polars", "onnxruntime", "passed"),
    }


def test_the_tutorial_has_its_five_parts() -> None:
    assert [title.partition(". ")[2] for title in RECIPES] == [
        "Install",
        "A first run",
        "Read a record",
        "Compare",
        "Bring your data",
        "Add a task",
        "Publish results",
    ]

"""Tests docs/adding.md: writes and installs the plug-in package of its recipes, and runs the commands of each recipe."""

import re
import shutil
from collections.abc import Iterator

import pytest

from tests.recipes import ROOT, Environment, check_commands, environment_with, recipes

pytestmark = pytest.mark.slow
PAGE = ROOT / "docs" / "adding.md"
RECIPES = recipes(PAGE)
WITH_COMMANDS = [title for title, recipe in RECIPES.items() if recipe.of("sh")]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    folder = tmp_path_factory.mktemp("adding")
    yield environment_with(RECIPES.values(), folder)
    shutil.rmtree(folder, ignore_errors=True)


def test_the_page_has_a_recipe_of_each_kind() -> None:
    wanted = ["a data set", "a task", "an engine", "a backend", "a model of `buzzer bench`"]
    assert [title.lower() for title in WITH_COMMANDS] == wanted
    groups = set(re.findall(r'entry-points\."(buzzer\.\w+)"', PAGE.read_text()))
    from buzzer import plugins

    assert groups == set(plugins.GROUPS)


def test_the_task_is_short() -> None:
    """Without its imports, the task has at most 45 lines."""
    code = next(text for language, text in RECIPES["A task"].blocks if "class Coins" in text)
    assert len(code[code.index("class Coins") :].strip().splitlines()) <= 45


def test_recipes_do_what_the_page_says(environment: Environment) -> None:
    """The commands of each recipe print the output below them. The plug-ins are listed, and their records are valid."""
    for title in WITH_COMMANDS:
        check_commands(RECIPES[title], environment)
    check_listed(environment)
    check_records(environment)


def check_listed(environment: Environment) -> None:
    """`buzzer list` shows each plug-in with its distribution."""
    listed = environment.run("list")
    for name in ("bent-coins", "pandas-mapped", "traced", "dense", "coins"):
        assert re.search(rf"\b{name} .* acme-buzzer 0\.1\.0 ", listed), name
    assert len(re.findall("acme-buzzer", listed)) == 5
    assert re.search(r"\bpandas-mapped +yes", environment.run("env"))


def check_records(environment: Environment) -> None:
    """The records name the plug-in's version, share a fit, pass the gate and every check, can be scored again, and are in the report."""
    records = environment.records()
    assert {r.versions["acme-buzzer"] for r in records} == {"0.1.0"}
    runs = [r for r in records if r.job == "predict"]
    variants = {("pandas", "torch_eager"), ("polars", "torch_eager")}
    variants |= {("pandas-mapped", "torch_eager"), ("pandas", "traced")}
    assert {(r.engine, r.backend) for r in runs} == variants
    assert len({r.fit_id for r in runs}) == 1
    assert {r.gate.status for r in runs} == {"reference", "passed"}
    benches = {(r.task, r.backend, r.outcome, r.bench.denormals) for r in records if r.bench}
    assert benches == {("dense", name, "ok", "flushed") for name in ("torch_eager", "traced")}
    assert f"{len(records)} of {len(records)} records are valid" in environment.run("check", "records")
    assert "records have their submission's score" in environment.run(
        "data", "rescore", "bent-coins", "records"
    )
    for name in ("leaderboard.md", "page.html"):
        words = set(re.findall(r"[\w-]+", (environment.folder / name).read_text()))
        assert {"pandas-mapped", "traced", "bent-coins", "dense"} <= words

"""Every data set, and that of the recipe in docs/adding.md, has the interface of `contract.DataSet` and a card."""

import inspect
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from buzzer.datasets.contract import DataSet
from tests.recipes import ROOT, TITLE, recipes

FOLDER = ROOT / "datasets"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/__init__.py"))
RECIPE = "coins"
FUNCTIONS = ("generate", "check", "score", "convert")


class Named(NamedTuple):
    name: str
    module: Any
    card: str


@pytest.fixture(params=[*NAMES, RECIPE])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Named:
    name = request.param
    if name == RECIPE:
        return recipe(tmp_path)
    card = (FOLDER / name / "card.md").read_text(encoding="utf-8")
    return Named(name, import_module(f"buzzer.datasets.{name}"), card)


def recipe(folder: Path) -> Named:
    """The data set of the recipe, whose module is written to `folder`."""
    files = {}
    for _, text in recipes(ROOT / "docs" / "adding.md")["A data set"].blocks:
        if head := TITLE.match(text):
            files[head["path"]] = text[head.end() :]
    (folder / "module.py").write_text(files[f"acme/{RECIPE}/__init__.py"])
    spec = spec_from_file_location(RECIPE, folder / "module.py")
    assert spec and spec.loader
    spec.loader.exec_module(module := module_from_spec(spec))
    return Named(RECIPE, module, files[f"acme/{RECIPE}/card.md"])


def test_a_data_set_has_the_documented_interface(dataset: Named) -> None:
    assert dataset.name == dataset.module.NAME
    for function in FUNCTIONS:
        expected = list(inspect.signature(getattr(DataSet, function)).parameters.values())[1:]
        actual = list(inspect.signature(getattr(dataset.module, function)).parameters.values())
        assert [p.name for p in actual[: len(expected)]] == [p.name for p in expected]
        assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in actual[len(expected) :])
        assert inspect.getdoc(getattr(dataset.module, function))


def test_a_data_set_has_a_card(dataset: Named) -> None:
    assert dataset.card.startswith("# ")
    assert "**Terms:**" in dataset.card and "**Where to get it:**" in dataset.card

"""Every data set has the interface of `contract.DataSet` and a card."""

import inspect
from importlib import import_module
from pathlib import Path

import pytest

from buzzer.datasets.contract import DataSet

FOLDER = Path(__file__).parents[2] / "datasets"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/__init__.py"))
FUNCTIONS = ("generate", "check", "score", "convert")


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_has_the_documented_interface(name: str) -> None:
    module = import_module(f"buzzer.datasets.{name}")
    assert name == module.NAME
    for function in FUNCTIONS:
        expected = list(inspect.signature(getattr(DataSet, function)).parameters.values())[1:]
        actual = list(inspect.signature(getattr(module, function)).parameters.values())
        assert [p.name for p in actual[: len(expected)]] == [p.name for p in expected]
        assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in actual[len(expected) :])
        assert inspect.getdoc(getattr(module, function))


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_has_a_card(name: str) -> None:
    card = (FOLDER / name / "card.md").read_text(encoding="utf-8")
    assert card.startswith("# ") and "**Terms:**" in card and "**Where to get it:**" in card

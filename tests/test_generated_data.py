"""docs/generated-data.md: the generators have the published statistics, here at small scales, and the page is of this version of them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from buzzer.datasets import booking, recsys2021, sigir_ecom

ROOT = Path(__file__).parents[1]
# Differences that a small scale explains, or that the page's text names: by statistic, the largest ratio to the published value.
FAR = {
    "rows of authors with most followers (group 5)": 1.4,
    "purchase, of the rows": 3.0,
    "last cities: the 10 most frequent": 3.0,  # there are fewer cities
    "last cities: the 100 most frequent": 2.0,
    "accuracy@4 of the 4 most frequent cities": 3.0,
    "accuracy@4 of counts from city to city": 1.35,
    "events of a session, 99%": 1.4,
    "quote": 1.5,
    "labels of a query of task 1, mean": 1.4,
    "the 1% most frequent products": 1.35,
    "searches a row": 1.4,
    "carts that are bought": 1.5,
}
NEAR = 1.3
SCALES = {"booking": 0.02, "sigir_ecom": 0.004, "recsys2021": 0.00005}


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generated_data", ROOT / "docs" / "generated_data.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look it up
    spec.loader.exec_module(module)
    return module


PAGE = load()


@pytest.mark.parametrize("name", SCALES)
def test_generated_statistics_are_near_the_published_ones(name: str) -> None:
    each = PAGE.SETS[name]
    found = PAGE.statistics(each, SCALES[name])
    far = {}
    for row in each.rows:
        ratio = max(found[row.name] / row.published, row.published / max(found[row.name], 1e-9))
        if ratio > FAR.get(row.name, NEAR):
            far[row.name] = (row.published, found[row.name])
    assert not far


def test_the_page_is_of_these_generators_and_published_values() -> None:
    text = PAGE.PAGE.read_text(encoding="utf-8")
    modules = {"booking": booking, "sigir_ecom": sigir_ecom, "recsys2021": recsys2021}
    assert set(modules) == set(PAGE.SETS)
    for name, module in modules.items():
        section = text.split(f"## `{name}`")[1].split("\n## ")[0]
        assert f"version {module.generator.VERSION} of the generator" in section
        rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][2:]
        assert [row[:2] for row in rows] == [
            [row.name, row.shown(row.published)] for row in PAGE.SETS[name].rows
        ]
        assert {row.source for row in PAGE.SETS[name].rows} == set(PAGE.SETS[name].sources)


def test_the_share_of_the_most_frequent_values() -> None:
    counts = PAGE.np.array([1, 50, 1, 1, 1, 1, 1, 1, 1, 42])
    assert PAGE.top_share(counts, 0.1) == 0.5
    assert PAGE.top_share(counts, 0.2) == pytest.approx(0.92)
    assert PAGE.top_share(counts, 0.001) == 0.5  # at least one value

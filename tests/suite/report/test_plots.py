"""Plots of the published records: their figures are those of the page and the README."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest

import buzzer
from buzzer.errors import UnsupportedError, UsageError
from buzzer.suite.records.collection import Records
from buzzer.suite.report import page_bench, plots, summary

ROOT = Path(__file__).resolve().parents[3]
PLOTS = [plots.speed_up, plots.frontier, plots.roofline]


@pytest.fixture(scope="module")
def records() -> Records:
    return buzzer.load_records(ROOT / "results")


def drawn(plot: Any, records: Records) -> list[list[dict[str, Any]]]:
    """The data sets of a plot, after Altair has checked it by Vega-Lite's schema."""
    pytest.importorskip("altair")
    return list(plot(records).to_dict()["datasets"].values())


def test_the_speed_ups_are_those_of_the_readme(records: Records) -> None:
    rows = [row for part in drawn(plots.speed_up, records) for row in part if "variant" in row]
    gains = [gain for s in summary.summaries(records) for gain in plots.gains_of(s)]
    assert gains
    assert {row["times faster"] for row in rows} == {gain.ratio.value for gain in gains}
    for row in rows:
        assert (row["low"] is None) == (row["rounds"] < 3)
        assert row["low"] is None or row["low"] <= row["times faster"] <= row["high"]


def test_the_frontier_has_every_point_and_marks_the_front(records: Records) -> None:
    rows = [row for part in drawn(plots.frontier, records) for row in part]
    points = [p for _, of_model in page_bench.frontier_points(records) for p in of_model]
    assert points and {row["name"] for row in rows} == {p.name for p in points}
    assert {row["name"] for row in rows if row["front"]} == {p.name for p in points if p.front}


def test_no_run_is_above_its_roof(records: Records) -> None:
    parts = drawn(plots.roofline, records)
    runs = [row for part in parts for row in part if "run" in row]
    assert len({row["run"] for row in runs}) > 10
    assert all(row["GFLOP/s"] > 0 and math.isfinite(row["intensity"]) for row in runs)
    for part in parts:
        for name in {row["precision"] for row in part if "run" not in row}:
            rates = [row["GFLOP/s"] for row in part if row["precision"] == name]
            assert rates[0] < rates[1] == pytest.approx(rates[2])  # up the slope, then level


@pytest.mark.parametrize("plot", PLOTS)
def test_nothing_to_show_is_an_error(plot: Any) -> None:
    pytest.importorskip("altair")
    with pytest.raises(UsageError, match="among these records"):
        plot(Records())


@pytest.mark.parametrize("plot", PLOTS)
def test_without_the_extra_a_plot_says_what_to_install(plot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="a plot needs the package altair") as error:
        plot(Records())
    assert error.value.hint == "pip install 'buzzer[plots]'"


def test_plots_are_public() -> None:
    assert buzzer.plots is plots

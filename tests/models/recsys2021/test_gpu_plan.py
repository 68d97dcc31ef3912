"""The RecSys 2021 pipeline as a whole translates to cuDF. Needs the gpu-plan extra, and no GPU."""

import importlib.util
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from buzzer.datasets import recsys2021
from buzzer.datasets.contract import silent
from buzzer.engine.frames import gpu_plan
from buzzer.engine.frames.lazy import Lazy
from buzzer.models.recsys2021 import features, fitting, second_stage_features
from buzzer.models.recsys2021.feature_sets import FEATURE_SETS
from buzzer.models.recsys2021.fitting import Fitted, Rows, sampled
from buzzer.models.recsys2021.lookup_tables import Occurring, merged
from tests.gpu_plans import Planned

MODELS = second_stage_features.MODELS
pytestmark = [
    pytest.mark.gpu_plan,
    pytest.mark.skipif(importlib.util.find_spec("cudf_polars") is None, reason="needs the gpu-plan extra"),
]


def check(plan: Any, *, fits_codes: bool = False) -> None:
    """All of it on cuDF; and shared out over several GPUs, but for tables of codes, which are numbered in one order."""
    assert gpu_plan.refusals(plan) == []
    assert bool(gpu_plan.fallback(plan)) == fits_codes


@pytest.mark.parametrize("name", FEATURE_SETS)
def test_recsys2021_translates_whole_and_stays_shared_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = FEATURE_SETS[name]
    recsys2021.generate(tmp_path / "data", 0.00001, 0, silent)
    e, cpu = Planned(), Lazy("cpu")
    monkeypatch.setattr(e, "height", cpu.height)  # a number that the host asks for is no part of a plan
    read = features.read_part(e, tmp_path / "data" / "train" / "part-00000", True)
    t = features.base(e, read, chosen, True, [features.TEXTS])
    check(t)
    t = cpu.collect(t)  # as the task does between its phases: what was looked up is a table, no plan
    codes = features.fit_codes(e, t.select)
    for table in codes.values():
        check(table, fits_codes=True)
    coded = features.code(e, t, {name: cpu.collect(table) for name, table in codes.items()})
    check(coded)
    coded = cpu.collect(coded)
    files = [tmp_path / f"{half}.parquet" for half in (0, 1)]
    for half, path in enumerate(files):
        cpu.write_parquet(coded.filter(pl.col("row") % 2 == half), path)
    in_files = Rows(e, files, 0).columns(["a", "like"], sampled(1, 2))
    assert gpu_plan.refusals(in_files) == []  # how far it is shared out is read from the files, on a GPU

    def columns(names: Sequence[str]) -> Any:
        return e.select(coded, list(dict.fromkeys(names)))

    users = features.fit_users(e, columns, 2)
    kinds = {
        "train": features.fit_tables(e, columns, chosen),
        "raw": features.fit_raw_tables(e, columns, chosen),
        "second": second_stage_features.fit_tables(e, partial(e.select, coded), chosen, MODELS),
        "rows": second_stage_features.count(e, partial(e.select, coded), chosen, MODELS),
        "user": {"code": users},
    }
    for kind, named in kinds.items():
        for table in named.values():
            check(table, fits_codes=kind == "user")
    tables = {kind: {name: cpu.collect(x) for name, x in named.items()} for kind, named in kinds.items()}
    means = dict.fromkeys(features.TARGETS, 0.1)
    for strategy in ("kfold", "loo"):
        own = features.encode_own(e, coded, tables["train"], means, strategy, chosen, source=columns)
        check(own)
        check(second_stage_features.encode_own(e, coded, tables["second"], means, chosen, strategy))
    fitted = Fitted({}, tables["user"], tables["train"], tables["raw"], means)
    lookups = [
        *fitting.lookups(e, fitted, chosen),
        *second_stage_features.lookups(e, tables["second"], means, chosen, MODELS),
    ]
    lookups += second_stage_features.count_lookups(tables["rows"], chosen)
    check(features.pair_features(e, e.lookups(coded, lookups), chosen))
    once = merged(e, lookups, Occurring(e, [], 0))
    assert len(once) == len({tuple(sorted(each.on)) for each in lookups})
    check(features.pair_features(e, e.lookups(coded, once), chosen))

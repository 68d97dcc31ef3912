"""Both SIGIR eCom pipelines as a whole translate to cuDF. Needs the gpu-plan extra, and no GPU."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from buzzer.datasets import sigir_ecom
from buzzer.datasets.contract import silent
from buzzer.datasets.sigir_ecom import json_file
from buzzer.engine.frames import gpu_plan
from buzzer.engine.frames.lazy import Lazy
from buzzer.models.sigir_ecom.next_item import counts
from buzzer.models.sigir_ecom.purchase import purchase_features
from buzzer.models.sigir_ecom.sessions import events, products, shared
from tests.gpu_plans import Planned

pytestmark = [
    pytest.mark.gpu_plan,
    pytest.mark.skipif(importlib.util.find_spec("cudf_polars") is None, reason="needs the gpu-plan extra"),
]
DIMS = 3


def test_sigir_ecom_translates_whole(tmp_path: Path) -> None:
    """Plans are proven for the GPU and computed by Polars on the CPU, as the task collects between its steps."""
    folder = tmp_path / "data"
    sigir_ecom.generate(folder, 0.0001, 0, silent)
    e, cpu = Planned(), Lazy("cpu")

    def proven(plan: Any) -> Any:
        assert gpu_plan.refusals(plan) == []
        return plan

    def table(plan: Any) -> Any:
        return cpu.collect(proven(plan))

    kinds = dict.fromkeys(("session_id_hash", *events.TEXT), "str") | {"server_timestamp_epoch_ms": "int64"}
    pages = table(events.browsing(e, e.read_csv(folder / "browsing_train.csv", kinds)))
    names = table(e.distinct(pages, ["sku", "product_sku_hash"]))
    pages = e.select(pages, events.KEPT)
    searches = table(events.search(e, folder / "search_train.csv", int(cpu.height(pages))))
    content = table(events.read_content(e, folder / "sku_to_content.csv"))
    codes = {name: table(plan) for name, plan in events.fit_codes(e, pages, content, 1).items()}
    axes = np.eye(50)[:, :DIMS]
    sizes = [int(cpu.height(codes[name])) + 2 for name in ("sku", "url")]
    vocabulary = events.Vocabulary(codes, *sizes, axes)
    known = products.fit(cpu, content, names, codes["sku"], cpu.categorify_fit([(content, "category_hash")]))
    both = e.concat([events.without_queries(e, pages, axes), table(events.project(e, searches, axes))])
    proven(e.filter(pages, shared.between(-(2**63), 0)))
    coded = table(events.code(e, both, vocabulary))
    proven(events.in_sessions(e, coded, axes))
    sums = {name: table(plan) for name, plan in counts.add(e, {}, coded).items()}
    for plan in (*counts.add(e, sums, coded).values(), *counts.tables(e, sums, 5).values()):
        proven(plan)
    placed = table(events.code(e, table(purchase_features.place(e, both)), vocabulary))
    facts = purchase_features.Facts(cpu.collect(purchase_features.facts(cpu, known).table))
    carted = table(purchase_features.with_cart(e, table(events.in_sessions(e, placed, axes))))
    described = table(purchase_features.describe(e, carted, facts))
    rows = table(purchase_features.training_rows(e, described, DIMS))
    proven(purchase_features.encode_own(e, rows, 0.2))
    rates = {name: table(plan) for name, plan in purchase_features.fit_rates(e, rows).items()}
    proven(purchase_features.encode(e, table(purchase_features.test_rows(e, described)), rates, 0.2))
    piece = next(json_file.pieces(folder / "rec_test_phase_2.json", 10))
    proven(events.code(e, events.test_events(e, json_file.events(piece), axes), vocabulary))

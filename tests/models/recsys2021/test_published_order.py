"""The table of models in docs/recsys2021.md: its figures are those of its record, and its lessons those of the winners' table."""

import re

import numpy as np

from buzzer.suite.records import record
from tests.recipes import ROOT

PAGE = ROOT / "docs" / "recsys2021.md"
NAMES = ("trees_kfold", "trees_loo", "gru64", "pooled", "trees_split", "gru128", "first", "weighted")


def test_the_table_of_models() -> None:
    page = PAGE.read_text()
    before, _, table = page.partition("| mean RCE |")
    path = re.findall(r"\(\.\./(results/recsys2021-full/\S+\.json)\)", before)[-1]
    scores = record.read(ROOT / path).scores
    rows = {row[0]: row[1:] for row in (re.split(r" *\| *", line)[1:-1] for line in table.splitlines()[:4])}
    assert rows["here"] == [f"{score:.2f}" for score in [scores[f"RCE_{n}"] for n in NAMES] + [scores["RCE"]]]

    ours, theirs = ([float(cell) for cell in rows[row][:6]] for row in ("here", "winners"))
    orders = [np.argsort(np.argsort(row)) for row in (ours, theirs)]
    rank_correlation = np.corrcoef(orders)[0, 1]
    mean, weighted, second_stage = (float(cell) for cell in rows["here"][6:])
    assert rank_correlation >= 0.8
    assert f"two orders is {rank_correlation:.2f}" in page
    assert weighted - max(ours) >= 1
    assert second_stage - mean >= 2

"""The table of models in docs/recsys2021.md has the figures of its records, and the text below it those of the table."""

import re

import numpy as np
from scipy.stats import spearmanr

from buzzer.suite.records import record
from tests.recipes import ROOT

PAGE = ROOT / "docs" / "recsys2021.md"
NAMES = ("trees_kfold", "trees_loo", "gru64", "pooled", "trees_split", "gru128", "first", "weighted")


def test_the_table_of_models() -> None:
    page = PAGE.read_text()
    table = page.partition("| mean RCE |")[2].partition("\n\n")[0]
    rows = {row[0]: row[1:] for row in (re.split(r" *\| *", line)[1:-1] for line in table.splitlines()[2:])}
    paths = {head: re.search(r"\(\.\./(results/.*\.json)\)", head) for head in rows}
    scores = {head: record.read(ROOT / path[1]).scores for head, path in paths.items() if path}
    seeds = {head: [s[f"RCE_{name}"] for name in NAMES] + [s["RCE"]] for head, s in scores.items()}
    means = np.mean(list(seeds.values()), axis=0)
    assert len(seeds) == 3
    for head, row in (seeds | {"mean of the seeds": list(means)}).items():
        assert rows[head] == [f"{score:.2f}" for score in row]

    best, mean, weighted, second_stage = max(means[:6]), *means[6:]
    published = [float(cell) for cell in rows["winners"][:6]]
    rank_correlation = spearmanr(means[:6], published).statistic
    assert f"order and that of the means is {rank_correlation:.2f}" in page
    assert f"weighted mean gains {weighted - best:.2f} over the best model" in page
    assert (
        f"second stage {second_stage - mean:.2f} over the mean and {second_stage - weighted:.2f} over" in page
    )
    assert rank_correlation >= 0.8
    assert second_stage - mean >= 2

"""The table of models in docs/recsys2021.md has the figures of its records, and the text below it those of the table."""

import numpy as np
from scipy.stats import spearmanr

from buzzer.suite.records.schema import Record
from tests.pages import linked_records, table_of
from tests.recipes import ROOT

NAMES = ("trees_kfold", "trees_loo", "gru64", "pooled", "trees_split", "gru128", "first", "weighted")


def scores_of(run: Record) -> list[float]:
    """The RCE of the models, of their two means, and of the second stage, in a record."""
    return [run.scores[f"RCE_{name}"] for name in NAMES] + [run.scores["RCE"]]


def test_the_table_of_models() -> None:
    page = (ROOT / "docs" / "recsys2021.md").read_text()
    rows = table_of("recsys2021.md", "| mean RCE |")
    linked = {head: linked_records(head) for head in rows}
    scores = {head: [scores_of(run) for run in runs] for head, runs in linked.items() if runs}
    seeds = [of_row[0] for of_row in scores.values() if len(of_row) == 1]
    assert sorted(map(len, scores.values())) == [1, 1, 1, 3]
    means = np.mean(seeds, axis=0)
    for head, of_row in (scores | {"mean of the seeds": seeds}).items():
        assert rows[head] == [f"{score:.2f}" for score in np.mean(of_row, axis=0)]

    best, mean, weighted, second_stage = max(means[:6]), *means[6:]
    published = [float(cell) for cell in rows["winners"][:6]]
    rank_correlation = spearmanr(means[:6], published).statistic
    assert f"order and that of the means is {rank_correlation:.2f}" in page
    assert f"weighted mean gains {weighted - best:.2f} over the best model" in page
    assert (
        f"second stage {second_stage - mean:.2f} over the mean and {second_stage - weighted:.2f} over" in page
    )
    assert rank_correlation >= 0.8
    assert weighted - best >= 1
    assert second_stage - mean >= 2
    seed_0 = seeds[0]
    assert spearmanr(seed_0[:6], published).statistic >= 0.8
    assert seed_0[7] - max(seed_0[:6]) >= 1
    assert seed_0[8] - seed_0[6] >= 2

"""The table of the way to the best possible score in docs/booking.md has the figures of its records."""

import re

from buzzer.suite.records import record
from tests.recipes import ROOT

PAGE = ROOT / "docs" / "booking.md"


def test_the_table_of_the_way() -> None:
    table = PAGE.read_text().partition("| epochs | MLP | encoder | GRU | blend |")[2].partition("\n\n")[0]
    rows = re.findall(r"\(\.\./(results/[^)]*\.json)\) \| (.*) \|", table)
    assert len(rows) == 3
    for path, cells in rows:
        run = record.read(ROOT / path)
        counts, ceiling = run.scores["accuracy@4_baseline"], run.details["ceiling"]
        scores = [run.scores[f"accuracy@4{name}"] for name in ("_mlp", "_encoder", "_gru", "")]
        ways = [(score - counts) / (ceiling - counts) for score in scores]
        assert cells.split(" | ") == [
            f"{s:.4f} ({way:.0%})".replace("%", " %") for s, way in zip(scores, ways, strict=True)
        ]
    assert min(ways) >= 0.6  # of the last record: every network, and the blend

"""The table of the way to the best possible score in docs/booking.md has the figures of its records."""

from tests.pages import linked_records, table_of


def test_the_table_of_the_way() -> None:
    rows = table_of("booking.md", "| epochs | MLP | encoder | GRU | blend |")
    assert len(rows) == 3
    for head, cells in rows.items():
        (run,) = linked_records(head)
        counts, ceiling = run.scores["accuracy@4_baseline"], run.details["ceiling"]
        scores = [run.scores[f"accuracy@4{name}"] for name in ("_mlp", "_encoder", "_gru", "")]
        ways = [(score - counts) / (ceiling - counts) for score in scores]
        assert cells == [f"{s:.4f} ({100 * way:.0f} %)" for s, way in zip(scores, ways, strict=True)]
    assert min(ways) >= 0.6  # of the last record: every network, and the blend

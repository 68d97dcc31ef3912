"""The table of masked and causal training in docs/sigir.md has the figures of its records, in the published order."""

from tests.pages import linked_records, table_of
from tests.recipes import ROOT


def test_masked_is_ahead_of_causal_and_causal_of_counts() -> None:
    section = (ROOT / "docs" / "sigir.md").read_text().partition("## Masked or causal")[2]
    fit, predict = linked_records(section.partition("| MRR@20 |")[0])
    assert (fit.job, predict.job, predict.fit_id) == ("fit", "predict", fit.fit_id)
    test = [predict.scores[f"MRR@20{name}"] for name in ("_counts", "_c", "_m", "")]
    held_out = [fit.scores[f"valid_MRR@20_{name}"] for name in ("counts", "c", "m", "ensemble")]
    networks = fit.config["models"]
    assert [networks[name]["network"] for name in ("c", "m")] == ["causal", "masked"]
    rows = table_of("sigir.md", "| MRR@20 | counts | causal | masked |")
    assert rows["test"] == [f"{score:.4f}" for score in [*test, predict.details["ceiling"]]]
    assert rows["held-out"][:-1] == [f"{score:.4f}" for score in held_out]
    for counts, causal, masked, blend in (test, held_out):
        assert counts < causal < masked < blend

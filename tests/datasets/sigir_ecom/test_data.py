"""Reader, generator, local test and metrics of SIGIR eCom 2021, compared with cases computed by hand and plain loops."""

import ast
import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buzzer.datasets import sigir_ecom, strict_json
from buzzer.datasets.contract import silent
from buzzer.datasets.sigir_ecom import generator, metric, sessions
from buzzer.datasets.sigir_ecom.reader import csv_pieces, paths
from buzzer.datasets.sigir_ecom.schema import AFTER_ADD, BROWSING, CONTENT, EVENT, SEARCH, TESTS
from buzzer.errors import DataError

SCALE = 0.0005


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sigir") / "data"
    sigir_ecom.generate(out, SCALE, 0, silent)
    return out


@pytest.fixture
def copy(generated: Path, tmp_path: Path) -> Path:
    """A copy of the generated files, to be changed."""
    return Path(shutil.copytree(generated, tmp_path / "copy"))


def queries(folder: Path, task: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / TESTS[task][0]).read_text())
    return found


# ---- generator ---------------------------------------------------------------------------------------------------


def test_the_seed_determines_the_files(generated: Path, tmp_path: Path) -> None:
    sigir_ecom.generate(tmp_path / "again", SCALE, 0, silent)
    sigir_ecom.generate(tmp_path / "other", SCALE, 1, silent)
    for path in generated.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "other" / "browsing_train.csv").read_bytes() != (
        generated / "browsing_train.csv"
    ).read_bytes()


def test_generated_files_have_the_published_statistics(generated: Path) -> None:
    pages, searches = (
        pl.read_csv(generated / "browsing_train.csv"),
        pl.read_csv(generated / "search_train.csv"),
    )
    content = pl.read_csv(generated / "sku_to_content.csv")
    for table, kinds in ((pages, BROWSING), (searches, SEARCH), (content, CONTENT)):
        assert table.columns == list(kinds)
    lengths = (
        pl.concat([t.select("session_id_hash") for t in (pages, searches)]).group_by("session_id_hash").len()
    )
    assert 0.69 < (pages["event_type"] == "pageview").mean() < 0.73  # official .711
    assert 6.5 < lengths["len"].mean() < 8.5  # type: ignore[operator]  # 7.31
    assert lengths["len"].median() in (2, 3, 4)  # 3
    assert 0.008 < searches.height / pages.height < 0.04  # .0227
    counts = pages["product_sku_hash"].drop_nulls().value_counts(sort=True)["count"].to_numpy()
    assert counts[: len(counts) // 4].sum() > 0.33 * counts.sum()  # .956 with 57,483 products
    norms = [np.linalg.norm(json.loads(text)) for text in content["image_vector"].drop_nulls()[:50]]
    assert min(norms) >= 307 and max(norms) <= 571
    carts = queries(generated, "cart")
    assert 0.05 < np.mean([query["label"] for query in carts]) < 0.5
    assert {query["nb_after_add"] for query in carts} <= set(AFTER_ADD)


def test_vectors_carry_the_category(generated: Path) -> None:
    content = pl.read_csv(generated / "sku_to_content.csv").drop_nulls("category_hash")
    vectors = np.array([json.loads(text) for text in content["description_vector"]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = vectors @ vectors.T
    same = content["category_hash"].to_numpy()[:, None] == content["category_hash"].to_numpy()
    off = ~np.eye(len(same), dtype=bool)
    assert alike[same & off].mean() > alike[~same].mean() + 0.3


@pytest.mark.slow
def test_memory_does_not_grow_with_the_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = generator.World(0.0001)  # one size for both; above scale 1 it does not grow
    monkeypatch.setattr(generator, "CHUNK", 128)
    monkeypatch.setattr(generator, "World", lambda scale: world)
    peaks = []
    for scale in (0.0001, 0.0004):
        tracemalloc.start()
        sigir_ecom.generate(tmp_path / f"{scale}", scale, 0, silent)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


# ---- test sessions -----------------------------------------------------------------------------------------------


def event(action: str | None = None, sku: str | None = None, *, search: bool = False) -> dict[str, Any]:
    plain = dict.fromkeys(EVENT)
    return plain | {"product_action": action, "product_sku_hash": sku, "is_search": search}


SESSION = [
    event(),
    event("detail", "a"),
    event(search=True),
    event("add", "a"),
    event("detail", "b"),
    event(),
    event("detail", "a"),
    event("purchase", "a"),
    event("detail", "c"),
]


def test_recommendation_cuts_anywhere_and_labels_later_products() -> None:
    seen = set()
    for seed in range(200):
        query = sessions.recommendation(SESSION, np.random.default_rng(seed))
        assert query is not None
        cut = len(query["query"])
        later = [e["product_sku_hash"] for e in SESSION[cut:] if e["product_sku_hash"]]
        assert query["label"] == list(dict.fromkeys(later))
        seen.add(cut)
    assert seen == set(range(1, 9))
    assert sessions.recommendation([event(), event(search=True)], np.random.default_rng(0)) is None
    assert sessions.recommendation([event("detail", "a"), event()], np.random.default_rng(0)) is None


def test_intention_is_cut_before_the_purchase() -> None:
    seen = set()
    for seed in range(50):
        query = sessions.intention(SESSION, np.random.default_rng(seed))
        assert query is not None and query["label"] == 1
        assert len(query["query"]) == 4 + query["nb_after_add"]
        seen.add(query["nb_after_add"])
    assert seen == {0, 2}  # three events between add and purchase
    kept = sessions.intention(SESSION[:4], np.random.default_rng(0))
    assert kept is not None and (kept["label"], kept["nb_after_add"], len(kept["query"])) == (0, 0, 4)
    assert (
        sessions.intention(SESSION[7:], np.random.default_rng(0)) is None
    )  # a purchase without an add before it


@pytest.mark.parametrize("text", ["[0.5, -1e-3, 2]", "[01.5, -0.0]", "['ab', 'cd']", "[]"])
def test_lists_are_those_that_python_reads(text: str) -> None:
    assert sessions.literal(text) == ast.literal_eval(text)


def test_generated_queries_are_cut_sessions(generated: Path) -> None:
    for task in TESTS:
        for query in queries(generated, task):
            assert all(tuple(e) == EVENT for e in query["query"])
            times = [e["server_timestamp_epoch_ms"] for e in query["query"]]
            assert times == sorted(times)
            assert len({e["session_id_hash"] for e in query["query"]}) == 1
            assert all(e["is_search"] == (e["query_vector"] is not None) for e in query["query"])
    assert not any(e["product_action"] == "purchase" for q in queries(generated, "cart") for e in q["query"])


def test_the_local_test_has_the_last_days(copy: Path, tmp_path: Path) -> None:
    for names in TESTS.values():
        (copy / names[0]).unlink()
    assert set(paths(copy)) == {"browsing", "search", "content"}
    sigir_ecom.convert(copy, tmp_path / "new", silent)
    local = tmp_path / "new" / "local"
    files = sigir_ecom.check(local, silent)
    assert files.facts["labelled"] == files.rows["rec"] + files.rows["cart"] > 0
    assert {p.name for p in (tmp_path / "new").glob("*.parquet")} == {
        "browsing.parquet",
        "search.parquet",
        "content.parquet",
    }
    key, time = "session_id_hash", "server_timestamp_epoch_ms"
    before = {n: pl.read_csv(copy / f"{n}_train.csv") for n in ("browsing", "search")}
    after = {n: pl.read_csv(local / f"{n}_train.csv") for n in before}
    starts = pl.concat([t.select(key, time) for t in before.values()]).group_by(key).agg(pl.col(time).min())
    late = starts.filter(pl.col(time) > starts[time].max() - 7 * 86_400_000)
    for n, t in before.items():
        assert after[n].equals(t.join(late, on=key, how="anti", maintain_order="left"))
    held = {e[key] for task in TESTS for q in queries(local, task) for e in q["query"]}
    assert held <= set(late[key])


# ---- reader ------------------------------------------------------------------------------------------------------


def change_line(path: Path, line: int, change: Callable[[str], str]) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[line - 1] = change(lines[line - 1])
    path.write_text("".join(lines))


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("browsing_train.csv", lambda x: x.replace(x[:64], "xyz", 1), "column session_id_hash: 'xyz'"),
        (
            "browsing_train.csv",
            lambda x: x.replace("pageview", "view").replace("event_product", "view"),
            "event_type",
        ),
        ("search_train.csv", lambda x: x.replace("[", "[0.1, ", 1), "not 50 numbers"),
        ("search_train.csv", lambda x: x.replace("[", "(", 1), "column query_vector"),
        ("sku_to_content.csv", lambda x: x[:66] + "\n", "line 4"),
    ],
)
def test_damaged_lines_are_refused(
    copy: Path, name: str, change: Callable[[str], str], expected: str
) -> None:
    change_line(copy / name, 4, change)
    with pytest.raises(DataError) as error:
        sigir_ecom.check(copy, silent)
    assert name in error.value.message and expected in error.value.message


def test_cut_files_are_refused(copy: Path) -> None:
    path = copy / "rec_test_phase_2.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match="truncated or damaged after"):
        sigir_ecom.check(copy, silent)
    path.write_text('{"query": []}')
    with pytest.raises(DataError, match="not a list of queries"):
        sigir_ecom.check(copy, silent)
    path.write_text('[{"query": []}]')
    with pytest.raises(DataError, match="query 0, query: \\[\\]: List should have at least 1 item"):
        sigir_ecom.check(copy, silent)
    (copy / "browsing_train.csv").unlink()
    with pytest.raises(DataError, match=r"no browsing_train\.csv"):
        sigir_ecom.check(copy, silent)


@given(
    st.lists(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=8)), max_size=8),
    st.integers(1, 40),
)
@settings(max_examples=40)
def test_records_of_any_chunk_size(
    tmp_path_factory: pytest.TempPathFactory, items: list[Any], chunk: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(items, ensure_ascii=False, indent=1), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_json, "CHUNK", chunk)
        assert list(strict_json.objects(path)) == items


def test_pieces_hold_all_lines_of_the_file(generated: Path, tmp_path: Path) -> None:
    path = generated / "browsing_train.csv"
    parts = [pl.read_csv(piece) for piece in csv_pieces(path, tmp_path, 1000)]
    assert all(part.height == 1000 for part in parts[:-1]) and len(parts) > 2
    assert pl.concat(parts).equals(pl.read_csv(path))
    assert list(tmp_path.iterdir()) == []


# ---- metrics -----------------------------------------------------------------------------------------------------


def test_next_item_by_hand() -> None:
    truth = [["a", "b"], ["c"], ["d"], []]
    guesses = [["x", "a"], ["c", "c"], ["y"] * 20 + ["d"], ["a"]]
    assert metric.next_item_mrr(guesses, truth) == pytest.approx((1 / 2 + 1 + 0 + 0) / 4)


def test_subsequent_by_hand() -> None:
    # Two hits: precision 2/20, recall 2/3. A short list is also divided by 20. Repeated items count once on both sides.
    truth, guesses = [["a", "b", "c", "a"], ["d"], []], [["a", "a", "b"], ["e"], ["f"]]
    first = 2 * (2 / 20) * (2 / 3) / (2 / 20 + 2 / 3)
    assert metric.subsequent_f1(guesses, truth) == pytest.approx(first / 3)


def test_weighted_by_hand() -> None:
    # Group 0 has one hit of two, group 10 one of one; the others are empty.
    assert metric.weighted_micro_f1([0, 0, 1], [0, 1, 1], [0, 0, 10]) == pytest.approx(1.0 * 0.5 + 0.5 * 1.0)
    everything = list(AFTER_ADD)
    assert metric.weighted_micro_f1([1] * 6, [1] * 6, everything) == pytest.approx(4.5)
    with pytest.raises(DataError, match="nb_after_add 3"):
        metric.weighted_micro_f1([0], [0], [3])


LISTS = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=25), min_size=1, max_size=6)


@given(LISTS, st.data())
@settings(max_examples=80)
def test_metrics_have_bounds_and_invariances(truth: list[list[str]], data: st.DataObject) -> None:
    guesses = [data.draw(st.lists(st.sampled_from("abcdefghij"), max_size=25)) for _ in truth]
    mrr, f1 = metric.next_item_mrr(guesses, truth), metric.subsequent_f1(guesses, truth)
    assert 0 <= mrr <= 1 and 0 <= f1 <= 1
    assert (
        metric.next_item_mrr([g[:20] for g in guesses], truth) == mrr
    )  # predictions after the 20th do not count
    assert metric.subsequent_f1([g[:20][::-1] for g in guesses], truth) == f1  # nor does their order
    assert metric.next_item_mrr([t[:1] for t in truth], truth) == pytest.approx(
        np.mean([len(t) > 0 for t in truth])
    )


def test_submissions_are_scored_by_position(generated: Path, tmp_path: Path) -> None:
    test = generated / TESTS["rec"][0]
    truth = metric.labels(test)
    sigir_ecom.write_submission(tmp_path / "good.json", test, truth)
    assert sigir_ecom.score(tmp_path / "good.json", test)["MRR@20"] == 1.0
    written = json.loads((tmp_path / "good.json").read_text())
    assert [q["query"] for q in written] == [q["query"] for q in queries(generated, "rec")]
    metric.write_records(tmp_path / "short.json", [{"label": ["a"]}])
    with pytest.raises(DataError, match="1 queries"):
        sigir_ecom.score(tmp_path / "short.json", test)
    metric.write_records(tmp_path / "bare.json", [{"label": []}, {"query": []}])
    with pytest.raises(DataError, match="query 1: label None"):
        sigir_ecom.score(tmp_path / "bare.json", test)
    zeros = [0] * len(queries(generated, "cart"))
    sigir_ecom.write_submission(tmp_path / "zeros.json", generated / TESTS["cart"][0], zeros)
    assert 1 < sigir_ecom.score(tmp_path / "zeros.json", generated / TESTS["cart"][0])["weighted_f1"] < 4.5


def put(path: Path, records: Any) -> Path:
    path.write_text(json.dumps(records))
    return path


@pytest.mark.parametrize(
    ("truth", "answer", "score"),
    [
        (["a"], ["a"], 1.0),
        ([1], ["1"], 0.0),
        ([1], [1.0], 1.0),
        (["1"], [1], 0.0),
        ([], ["a"], 0.0),
        (["a"], [], 0.0),
    ],
)
def test_items_are_the_same_where_python_calls_them_equal(
    tmp_path: Path, truth: list[Any], answer: list[Any], score: float
) -> None:
    """As in the organisers' script, which compares items in lists and sets."""
    paths_ = put(tmp_path / "s.json", [{"label": answer}]), put(tmp_path / "t.json", [{"label": truth}])
    assert sigir_ecom.score(*paths_)["MRR@20"] == score


@pytest.mark.parametrize("label", [None, "a", 1, {"a": 1}, [["a"]], [{}], [None], [True]])
def test_labels_other_than_lists_of_items_are_refused(tmp_path: Path, label: Any) -> None:
    paths_ = put(tmp_path / "s.json", [{"label": label}]), put(tmp_path / "t.json", [{"label": ["a"]}])
    with pytest.raises(DataError, match=r"query 0: label .* is not a list of items"):
        sigir_ecom.score(*paths_)


@pytest.mark.parametrize("label", [None, True, 1.0, 2, -1, "1", [1]])
def test_labels_other_than_0_and_1_are_refused(tmp_path: Path, label: Any) -> None:
    truth = put(tmp_path / "t.json", [{"label": 1, "nb_after_add": 0}])
    with pytest.raises(DataError, match=r"query 0: label .* is not 0 or 1"):
        sigir_ecom.score(put(tmp_path / "s.json", [{"label": label}]), truth)


@pytest.mark.parametrize("after", [None, [0], 3, "0", True, 2.0])
def test_a_truth_with_another_number_of_events_is_refused(tmp_path: Path, after: Any) -> None:
    truth = put(tmp_path / "t.json", [{"label": 1, "nb_after_add": after}])
    with pytest.raises(DataError, match=r"query 0: nb_after_add .* is none of"):
        sigir_ecom.score(put(tmp_path / "s.json", [{"label": 1}]), truth)


@pytest.mark.parametrize("task", TESTS)
def test_a_submission_must_have_the_queries_of_the_truth(generated: Path, tmp_path: Path, task: str) -> None:
    test, own = generated / TESTS[task][0], queries(generated, task)
    sigir_ecom.score(put(tmp_path / "s.json", own), test)
    other = json.loads(json.dumps(own))
    other[1]["query"][0]["server_timestamp_epoch_ms"] += 1
    bare = [{"label": query["label"]} for query in own]
    for given_, expected in (
        (other, "query 1: not the events"),
        (own[::-1], "query 0"),
        (bare, "query 0: not the events"),
    ):
        with pytest.raises(DataError, match=expected):
            sigir_ecom.score(put(tmp_path / "s.json", given_), test)
    for key in ("query", "label"):
        for depth in range(900, 1000, 5):  # below and above what the reader accepts
            deep = "[" * depth + "]" * depth
            (tmp_path / "s.json").write_text(
                json.dumps([{key: 0}, *own[1:]]).replace(f'"{key}": 0', f'"{key}": {deep}', 1)
            )
            with pytest.raises(DataError):
                sigir_ecom.score(tmp_path / "s.json", test)
    (tmp_path / "s.json").write_text(json.dumps(own) + "[]")
    with pytest.raises(DataError, match="text after the end"):
        sigir_ecom.score(tmp_path / "s.json", test)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("server_timestamp_epoch_ms", True, "server_timestamp_epoch_ms: True"),
        ("server_timestamp_epoch_ms", 2**63, "server_timestamp_epoch_ms"),
        ("hashed_url", 7, "hashed_url: 7"),
        ("product_sku_hash", "abc", "product_sku_hash: 'abc'"),
        ("event_type", 1, "event_type: 1"),
        ("query_vector", [0.5] * 49, "query_vector"),
        ("query_vector", [0.5] * 49 + [1e300], "query_vector"),
        ("query_vector", [0.5] * 49 + ["1"], "query_vector"),
        ("is_search", 0, "is_search: 0"),
        ("hashed_ur", None, "hashed_ur"),
        ("session_id_hash", "0" * 64, "its events belong to different sessions"),
    ],
)
def test_events_off_the_schema_are_refused(copy: Path, key: str, value: Any, expected: str) -> None:
    own = queries(copy, "rec")
    number = next(at for at, query in enumerate(own) if len(query["query"]) > 1)
    own[number]["query"][1][key] = value
    put(copy / TESTS["rec"][0], own)
    with pytest.raises(DataError) as error:
        sigir_ecom.check(copy, silent)
    assert f"query {number}" in error.value.message and expected in error.value.message
    assert len(error.value.message) < 250 + len(str(copy))


def test_sessions_of_a_few_days_cannot_be_split(copy: Path, tmp_path: Path) -> None:
    table = pl.read_csv(copy / "browsing_train.csv")
    late = table["server_timestamp_epoch_ms"] > table["server_timestamp_epoch_ms"].max() - 86_400_000  # type: ignore[operator]
    table.filter(late).write_csv(copy / "browsing_train.csv")
    pl.read_csv(copy / "search_train.csv").head(0).write_csv(copy / "search_train.csv")
    with pytest.raises(DataError, match="none to train on"):
        sigir_ecom.split(copy, tmp_path / "local", 0, silent)

"""Pieces of rows: their size, where they are stored, their lookups, and the files that workers write of them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from buzzer.engine.device import Gpu
from buzzer.engine.frames import Engine
from buzzer.engine.frames.base import Lookup
from buzzer.errors import UsageError
from buzzer.models.api.context import Data, RunContext
from buzzer.models.kept_pieces import KeptPieces
from buzzer.models.recsys2021 import ensemble, predicting, sizes
from buzzer.models.recsys2021.lookup_tables import Occurring, merged
from buzzer.models.recsys2021.params import Context
from buzzer.models.recsys2021.predicting import Piece, Predicted, Predictor, joined, pieces_of_test
from buzzer.models.recsys2021.task import TASK
from buzzer.suite import registry

MakeContext = Callable[..., RunContext]


def context_of(engine: str, device: str, gpu_memory_bytes: int | None = None, **changes: int) -> Context:
    """Settings of a run that has no folders."""
    params, here = registry.task("recsys2021").params | changes, Path()
    context = RunContext(
        "recsys2021", engine, "torch_eager", "fp32", device, here, here, here, 1.0, 0, 1, params,
        gpu_memory_bytes=gpu_memory_bytes,
    )  # fmt: skip
    return TASK.typed(context)


@pytest.mark.parametrize(
    ("engine", "device", "limit", "memories", "piece", "batch"),
    [
        ("pandas", "cpu", None, [], 500_000, 2048),
        ("polars", "cpu", 10**9, [10**9], 500_000, 2048),
        ("cudf", "cuda", None, [80 << 30], 3_000_000, 65_536),
        ("polars-gpu", "cuda", None, [80 << 30, 4 << 30], 1 << 20, 65_536),  # the smaller of two GPUs
        ("cudf", "cuda", 8 << 30, [80 << 30], 1 << 21, 65_536),  # as the budget allows
        ("cudf", "cuda", None, [], 3_000_000, 65_536),  # a GPU whose memory is unknown
    ],
)
def test_sizes_follow_engine_and_memory(
    engine: str,
    device: str,
    limit: int | None,
    memories: list[int],
    piece: int,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus = [Gpu("stand-in", memory) for memory in memories] or [Gpu("unknown")]
    monkeypatch.setattr("buzzer.engine.device.gpus", lambda: gpus)
    assert sizes.details(context_of(engine, device, limit)) == {"piece_rows": piece, "batch_rows": batch}
    shared = sizes.piece_rows(context_of(engine, device, limit), 4)  # so that each of four workers has one
    assert shared == (piece if device == "cpu" else min(piece, 750_000))
    assert sizes.piece_rows(context_of(engine, device, limit), 100) == 500_000
    assert sizes.joined_rows(context_of(engine, device, limit)) == (
        2_000_000 if engine in ("pandas", "polars") else piece
    )
    own = context_of(engine, device, limit, piece_rows=7, predict_batch=8)
    assert sizes.joined_rows(own) == 7
    assert sizes.details(own) == {"piece_rows": 7, "batch_rows": 8}
    with pytest.raises(UsageError, match="piece_rows=-1"):
        sizes.piece_rows(context_of(engine, device, limit, piece_rows=-1))


@pytest.mark.parametrize(
    ("piece_rows", "joined_rows", "files"), [(0, None, 0), (100, None, 5), (100, 250, 5), (100, 1000, 0)]
)
def test_pieces_that_are_predicted_together_stay_in_memory(
    e: Engine,
    piece_rows: int,
    joined_rows: int | None,
    files: int,
    data: Data,
    fitted_trees: Path,
    tmp_path: Path,
    trees_context: MakeContext,
) -> None:
    context = TASK.typed(trees_context(fitted_trees, tmp_path, e.name, piece_rows=piece_rows))
    predictor = Predictor(context, joined_rows)
    for number, path in pieces_of_test(context):
        predictor.preprocess(number, path)
    assert predictor.in_files == bool(files)
    assert len(list(tmp_path.glob(".pieces/coded*/rows"))) == files
    rows = [e.to_numpy(piece.columns(["a"]), ["a", "row"]) for piece in predictor.pieces]
    assert sum(len(columns["a"]) for columns in rows) == data.rows["test"]
    for piece in predictor.pieces:
        piece.forget()
    assert not list(tmp_path.glob(".pieces/*"))
    predictor.close()
    assert not list(tmp_path.iterdir())


def test_a_piece_reads_the_same_from_its_file(e: Engine, tmp_path: Path) -> None:
    columns = {"row": [0, 1, 2], "a": [5, -(2**62), 7], "text": ["1\t2", None, ""]}
    counts = {"a": e.from_arrow(pa.table({"a": [5, 7], "n": [1, 2]}))}
    kept = KeptPieces(tmp_path)
    piece = Piece(e, kept, 3, e.from_arrow(pa.table(columns)), counts)

    def read() -> dict[str, list[Any]]:
        return e.to_arrow(piece.columns(["text", "a"]), ["a", "text"]).to_pydict()

    before = read()
    assert before == {name: columns[name] for name in ("a", "text")}
    piece.put_aside()
    piece.put_aside()
    assert read() == before
    again = Piece(e, KeptPieces(tmp_path), 3)
    assert e.height(again.counts()["a"]) == 2
    piece.forget()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept_in_files", [False, True])
def test_joined_pieces_read_as_one(kept_in_files: bool, e: Engine, tmp_path: Path) -> None:
    """In the order of `row`, which continues from piece to piece."""
    kept, pieces = KeptPieces(tmp_path), []
    for number, rows in enumerate([[2, 0, 1], [3], [5, 4], [6, 7, 8, 9]]):
        t = e.from_arrow(pa.table({"row": rows, "a": [10 * row for row in rows]}))
        pieces.append(Piece(e, kept, number, t, {}))
        if kept_in_files:
            pieces[-1].put_aside()
    groups = joined(pieces, 4)
    assert [[piece.number for piece in group.pieces] for group in groups] == [[0, 1], [2], [3]]
    assert [group.predicted for group in groups] == ["predicted0", "predicted2", "predicted3"]
    assert len(joined(pieces, 10)) == 1 and len(joined(pieces, 0)) == 4
    assert e.to_arrow(groups[0].columns(["a"]), ["a"]).to_pydict() == {"a": [0, 10, 20, 30]}


@pytest.mark.parametrize("keys", [[], [["a"], ["a", "b"]]])
def test_merged_lookups_give_the_same_columns(e: Engine, keys: list[list[str]]) -> None:
    """By one and two columns, of tables with other key names, with and without a match; one lookup for each key set remains.

    keys: the columns whose keys have been found before.
    """
    rng = np.random.default_rng(0)
    t = e.from_arrow(
        pa.table({"row": range(200), "a": rng.integers(0, 30, 200), "b": rng.integers(0, 30, 200)})
    )

    def table(keys: list[str], values: str, least: int, kind: str) -> Any:
        one = np.arange(least, least + 20)
        grid = np.array([(x, y) for x in one for y in one if (x + y) % 3]) if len(keys) == 2 else one[:, None]
        columns = {key: grid[:, i] for i, key in enumerate(keys)}
        return e.from_arrow(pa.table(columns | {values: (grid.sum(axis=1) * 7 + least).astype(kind)}))

    users = table(["value"], "code", 5, "int64")
    wanted = [
        Lookup(table(["a"], "x", 0, "float32"), {"a": "a"}, {"x": "x_a"}, {"x_a": 0.5}),
        Lookup(table(["b"], "x", 15, "float32"), {"a": "b"}, {"x": "turned"}, -1.0),
        Lookup(users, {"a": "value"}, {"code": "a_user"}, 0),
        Lookup(users, {"b": "value"}, {"code": "b_user"}, 0),
        Lookup(table(["a", "b"], "n", 0, "int64"), {"a": "a", "b": "b"}, {"n": "met"}, 0),
        Lookup(table(["b", "a"], "n", 12, "int64"), {"b": "b", "a": "a"}, {"n": "rows"}, 3),
    ]
    occurring = Occurring(e, [partial(e.select, t)], 200)
    for columns in keys:
        occurring.of(columns)
    once = merged(e, wanted, occurring)
    assert [sorted(each.on) for each in once] == [["a"], ["b"], ["a", "b"]]
    names = [name for each in wanted for name in each.columns.values()]
    got, want = (e.to_numpy(e.lookups(t, asked), names) for asked in (once, wanted))
    for name in names:
        assert got[name].dtype == want[name].dtype
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    a = e.to_numpy(t, ["a"])["a"]
    np.testing.assert_array_equal(got["x_a"], np.where(a < 20, a * 7.0, 0.5))  # as written down by hand
    np.testing.assert_array_equal(got["turned"], np.where(a >= 15, a * 7.0 + 15, -1))


@pytest.mark.parametrize("size", [1, 7, 100])
def test_batches_have_every_row_once_and_every_text_once(size: int) -> None:
    """60 rows of 12 texts, one of them empty and one with all tokens."""
    rng = np.random.default_rng(1)
    texts = rng.integers(1, 9, (12, 20))
    many = np.array([0, 20, *rng.integers(1, 20, 10)])
    texts[np.arange(20) >= many[:, None]] = 0
    of = rng.permutation(np.repeat(np.arange(12), 5))
    tokens = texts[of].astype(np.int32)
    x, users = np.arange(60, dtype=np.float32)[:, None], np.arange(120).reshape(60, 2)
    batches = ensemble.Inputs(x, None, tokens, users).batches(size)
    assert len(batches) == 60
    for _ in range(2):  # each network iterates over the same batches
        seen, number = [], 0
        for batch in batches:
            rows, number = batch.places, number + len(batch.tokens)
            assert batch.features[:, 0].tolist() == rows.tolist() == batch.rows.tolist()
            width = batch.tokens.shape[1]
            assert width == max(many[of[rows]].max(), 1)  # no longer than the longest text
            np.testing.assert_array_equal(batch.tokens[batch.text], tokens[rows][:, :width])
            assert len(batch.tokens) == len(set(of[rows]))
            assert batch.tokens.flags["C_CONTIGUOUS"]
            seen += rows.tolist()
        assert sorted(seen) == list(range(60))
        assert many[of[seen]].tolist() == sorted(many[of])
        assert number <= 12 + 60 // size  # a text is in two batches only where one ends and the next begins


def test_texts_with_one_hash_keep_their_own_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hash that is the same for all texts of a length, rows of two texts alternate."""
    monkeypatch.setattr("buzzer.models.recsys2021.batches.MIX", 0)
    tokens = np.array([[1, 7], [2, 7], [1, 7], [2, 7]], dtype=np.int32)
    rows = ensemble.Inputs(np.zeros((4, 1), dtype=np.float32), None, tokens, np.zeros((4, 2), dtype=np.int64))
    (batch,) = rows.batches(10)
    np.testing.assert_array_equal(batch.tokens[batch.text], tokens[batch.places])
    assert len(batch.tokens) == 4


def test_files_of_workers_are_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    ids = pa.table({"tweet_id": ["A", "B", "C"], "enaging_user_id": ["x", "y", "z"]})
    by_model = {name: rng.random((3, 4)).astype("float32") for name in ("trees_kfold", "blend")}
    rows = Predicted(ids, by_model, rng.random((6, 4)).astype("float32")[::2])
    predicting.write(tmp_path / "rows.arrow", rows)
    back = predicting.read(tmp_path / "rows.arrow")
    assert back.ids.equals(ids)
    np.testing.assert_array_equal(back.blend, rows.blend)
    assert back.by_model.keys() == by_model.keys()
    for name, p in by_model.items():
        np.testing.assert_array_equal(back.by_model[name], p)

"""A prediction that is interrupted and goes on writes the same submission, and does no whole piece twice."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from buzzer import manifest
from buzzer.models.api.context import Result, RunContext
from buzzer.models.kept_pieces import KeptPieces
from buzzer.models.recsys2021 import features, sizes
from buzzer.models.recsys2021.predicting import Predictor
from buzzer.models.recsys2021.task import TASK

Run = Callable[..., Any]
MakeContext = Callable[..., RunContext]
PIECE_ROWS, PIECES = 100, 5


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How many pieces were parsed and how many were predicted."""
    done = {"parsed": 0, "predicted": 0}
    read_part, predict = features.read_part, Predictor.predict

    def parsed(*args: Any) -> Any:
        done["parsed"] += 1
        return read_part(*args)

    def predicted(self: Predictor, piece: Any) -> Any:
        result = yield from predict(self, piece)
        done["predicted"] += 1
        return result

    monkeypatch.setattr(features, "read_part", parsed)
    monkeypatch.setattr(Predictor, "predict", predicted)
    yield done


def stopped(context: RunContext, after: Callable[[], bool]) -> None:
    """A sitting that ends at the first phase or lap at which `after` is true."""
    steps = TASK.predict(context)
    for _ in steps:
        if after():
            break
    steps.close()


Whole = Callable[[str], tuple[Result, bytes]]


@pytest.fixture(scope="module")
def whole(
    fitted_trees: Path, trees_context: MakeContext, run: Run, tmp_path_factory: pytest.TempPathFactory
) -> Whole:
    """For an engine: the result and the submission of a prediction that was not interrupted."""

    @cache
    def of(engine: str) -> tuple[Result, bytes]:
        out = tmp_path_factory.mktemp("whole")
        result = run(TASK.predict(trees_context(fitted_trees, out, engine, piece_rows=PIECE_ROWS)))[0]
        return result, (out / "results.csv").read_bytes()

    return of


ENDS = [(1, 0), (3, 0), (5, 0), (5, 1), (5, 3), (5, 5)]  # pieces that were parsed and predicted
JOINED = [(PIECE_ROWS, PIECES), (250, 3)]  # pieces are predicted one by one, and two at a time
CASES = [
    *[("polars", *end, *joined) for end in ENDS for joined in JOINED],
    *[pytest.param("pandas", *end, *JOINED[1], marks=pytest.mark.slow) for end in ENDS[2:4]],
]


@pytest.mark.parametrize(("engine", "parsed", "predicted", "joined_rows", "groups"), CASES)
def test_a_resumed_prediction_writes_the_same_bytes(
    engine: str,
    parsed: int,
    predicted: int,
    joined_rows: int,
    groups: int,
    fitted_trees: Path,
    tmp_path: Path,
    trees_context: MakeContext,
    run: Run,
    whole: Whole,
    counted: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, submission = whole(engine)
    assert expected.details["pieces"] == PIECES
    monkeypatch.setattr(sizes, "joined_rows", lambda context: joined_rows)
    predicted = min(predicted, groups)
    outs = [tmp_path / name for name in ("first", "second")]
    for out in outs:
        out.mkdir()
    partial = tmp_path / "partial"
    make = [trees_context(fitted_trees, out, engine, piece_rows=PIECE_ROWS) for out in outs]
    counted.update(parsed=0, predicted=0)

    def reached() -> bool:
        return counted["parsed"] >= parsed and counted["predicted"] >= predicted

    stopped(replace(make[0], partial=partial), reached)
    assert list(outs[0].glob("results.csv")) == []
    kept = KeptPieces(partial)
    coded = sum(f"coded{n}" in kept for n in range(PIECES))
    done = sum(f"predicted{n}" in kept for n in range(PIECES))
    passed = "first_pass" in kept
    assert done >= predicted - 1 and (passed or coded >= parsed - 1)
    counted.update(parsed=0, predicted=0)
    resumed = run(TASK.predict(replace(make[1], partial=partial)))[0]
    assert counted == {"parsed": 0 if passed else PIECES - coded, "predicted": groups - done}
    assert (outs[1] / "results.csv").read_bytes() == submission
    assert resumed.scores == expected.scores and resumed.rows == expected.rows
    assert [path.name for path in outs[1].iterdir()] == ["results.csv"]


def test_a_damaged_piece_is_made_again(
    fitted_trees: Path, tmp_path: Path, trees_context: MakeContext, run: Run, counted: dict[str, int]
) -> None:
    """Also if the first pass is whole, which reads the pieces no more."""
    outs, partial = [tmp_path / name for name in ("first", "second")], tmp_path / "partial"
    for out in outs:
        out.mkdir()
        counted.update(parsed=0, predicted=0)
        run(TASK.predict(replace(trees_context(fitted_trees, out, piece_rows=PIECE_ROWS), partial=partial)))
        assert "first_pass" in KeptPieces(partial)
        (partial / "predicted1" / "rows").write_bytes(b"")  # its coded rows are deleted already
    assert counted == {"parsed": PIECES, "predicted": 1}
    assert (outs[0] / "results.csv").read_bytes() == (outs[1] / "results.csv").read_bytes()


def test_a_single_piece_is_not_kept(
    fitted_trees: Path, tmp_path: Path, trees_context: MakeContext, run: Run
) -> None:
    out, partial = tmp_path / "out", tmp_path / "partial"
    out.mkdir()
    run(TASK.predict(replace(trees_context(fitted_trees, out), partial=partial)))
    assert not partial.exists()


@pytest.mark.slow
def test_a_cluster_predicts_no_whole_piece_again(
    fitted_trees: Path, tmp_path: Path, trees_context: MakeContext, run: Run, scheduler: str
) -> None:
    outs, partial = [tmp_path / name for name in ("alone", "first", "second")], tmp_path / "partial"
    results = []
    for out in outs:
        out.mkdir()
        context = trees_context(fitted_trees, out, piece_rows=PIECE_ROWS)
        if out != outs[0]:
            context = replace(context, scheduler=scheduler, partial=partial)
        results.append(run(TASK.predict(context))[0])
        if out == outs[1]:  # as if the run had been killed before its second and fifth piece were whole
            (partial / "predicted1" / "rows").write_bytes(b"")
            KeptPieces(partial).remove("predicted4")
            before = (partial / "predicted0" / "rows").stat().st_mtime_ns
    assert (partial / "predicted0" / "rows").stat().st_mtime_ns == before
    assert len({(out / "results.csv").read_bytes() for out in outs}) == 1
    assert results[0].scores == results[1].scores == results[2].scores


def test_a_piece_is_complete_or_absent(tmp_path: Path) -> None:
    kept = KeptPieces(tmp_path)
    assert "a" not in kept
    with kept.making("a") as folder:
        (folder / "rows").write_bytes(b"abc")
    with pytest.raises(RuntimeError), kept.making("b") as folder:
        (folder / "rows").write_bytes(b"abc")
        raise RuntimeError
    assert "a" in kept and "a" in KeptPieces(tmp_path) and "b" not in KeptPieces(tmp_path)
    spoils: list[Callable[[Path], Any]] = [
        lambda f: (f / "rows").write_bytes(b"ab"),  # cut
        lambda f: (f / "rows").write_bytes(b"ab\0"),  # as long, with other content
        lambda f: (f / "rows").unlink(),
        lambda f: (f / "more").write_bytes(b""),
        lambda f: (f / manifest.NAME).write_text(""),
    ]
    for spoil in spoils:
        with kept.making("a") as folder:
            (folder / "rows").write_bytes(b"abc")
        assert "a" in KeptPieces(tmp_path)
        spoil(tmp_path / "a")
        assert "a" not in KeptPieces(tmp_path)
        assert not (tmp_path / "a").exists()


def test_a_piece_whose_replacement_was_interrupted_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    kept = KeptPieces(tmp_path)
    for content in (b"old", b"new"):
        if content == b"new":
            monkeypatch.setattr(Path, "rename", killed)
        with suppress(KeyboardInterrupt), kept.making("a") as folder:
            (folder / "rows").write_bytes(content)
    monkeypatch.undo()
    assert not (tmp_path / "a").exists()
    assert "a" in KeptPieces(tmp_path)
    assert (tmp_path / "a" / "rows").read_bytes() == b"new"

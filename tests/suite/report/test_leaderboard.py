from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from buzzer.suite.analysis import comparison
from buzzer.suite.records import frame, gate, repetitions
from buzzer.suite.records.schema import Record
from buzzer.suite.report import compare_json, compare_text, frontier, leaderboard, page_runs, record_text
from buzzer.suite.run.plan import TaskSelection, fit_run, predict_runs

Make = Callable[..., Record]
Choose = Callable[..., TaskSelection]
ORT = {"backend": "onnxruntime", "run_id": "b" * 32}


@pytest.mark.parametrize(
    ("score", "outcome", "status"),
    [(0.9, "ok", "passed"), (0.905, "ok", "passed"), (0.895, "ok", "passed"), (0.92, "wrong", "failed")],
)
def test_scores_within_the_tolerance_pass(
    make_record: Make, choose: Choose, score: float, outcome: str, status: str
) -> None:
    judged = gate.judge(make_record(**ORT, scores={"accuracy": score}), choose().task, [make_record()])
    assert (judged.outcome, judged.gate.status) == (outcome, status)
    assert judged.gate.differences["accuracy"] == pytest.approx(score - 0.9)


def test_a_missing_score_is_wrong(make_record: Make, choose: Choose) -> None:
    judged = gate.judge(make_record(**ORT, scores={"other": 1.0}), choose().task, [make_record()])
    assert (judged.outcome, judged.message) == ("wrong", "accuracy is missing (tolerance 0.01)")


@pytest.mark.parametrize(
    "change",
    [
        {"data_fingerprint": "x"},
        {"config_hash": "1" * 12},
        {"seed": 1},
        {"fit_id": "cpu-0"},
        {"outcome": "timeout"},
        {"precision": "int8"},
        {"cluster": "2 workers"},
    ],
)
def test_only_a_run_of_the_same_question_is_a_reference(
    make_record: Make, choose: Choose, change: dict[str, object]
) -> None:
    judged = gate.judge(make_record(**ORT), choose().task, [make_record(**change)])
    assert judged.gate.status == "no-reference"


def test_a_cluster_is_compared_with_one_process_and_shown_separately(
    make_record: Make, choose: Choose
) -> None:
    shared = make_record(cluster="2 workers", run_id="c" * 32)
    judged = gate.judge(shared, choose().task, [make_record()])
    assert (judged.gate.status, judged.gate.reference_run) == ("passed", "a" * 32)
    assert {line[1] for line in leaderboard.board([make_record(), judged]).lines} == {
        "none",
        "none, 2 workers",
    }
    (run,) = predict_runs(choose(workers=2, backends=["torch_eager"]))
    (alone,) = predict_runs(choose(backends=["torch_eager"]))
    assert (run.cluster, alone.cluster) == ("2 workers", "")
    assert fit_run(choose(workers=2)).cluster == ""
    shared_fit = fit_run(choose(workers=2, device="cuda"))
    assert (shared_fit.engine, shared_fit.cluster) == ("none", "2 workers")


@pytest.mark.parametrize(("peak", "outcome"), [(3 * 10**9, "ok"), (5 * 10**9, "device-oom"), (None, "ok")])
def test_more_gpu_memory_than_the_budget_allows(
    make_record: Make, choose: Choose, peak: int | None, outcome: str
) -> None:
    limited = make_record().budget.model_copy(update={"gpu_memory_bytes": 4 * 10**9})
    judged = gate.judge(make_record(budget=limited, gpu_peak_memory_bytes=peak), choose().task, [])
    assert judged.outcome == outcome
    assert ("took 5.0 GB" in judged.message) == (outcome != "ok")


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        ({}, "NVML was not available"),
        ({"gpu_busy_s": 0.0, "gpu_peak_memory_bytes": 10**9}, "busy 0 s"),
        ({"gpu_busy_s": 1.0, "gpu_peak_memory_bytes": 0}, "peak memory 0 bytes"),
        ({"gpu_busy_s": 1.0, "gpu_peak_memory_bytes": 10**9}, ""),
    ],
)
def test_a_gpu_run_without_proof_of_gpu_use_is_wrong(
    make_record: Make, choose: Choose, use: dict[str, float], reason: str
) -> None:
    judged = gate.judge(make_record(device="cuda", **use), choose().task, [])
    assert judged.outcome == ("wrong" if reason else "ok")
    assert reason in judged.message


def test_an_unscored_run_is_not_judged(make_record: Make, choose: Choose) -> None:
    assert gate.judge(make_record(scores={}), choose().task, []).gate.status == "unscored"


def passed(make: Make, **changes: object) -> Record:
    return make(**(ORT | {"gate": {"status": "passed"}} | changes))


def test_the_board_ranks_by_wall_time_and_shows_every_run(make_record: Make) -> None:
    records = [
        make_record(outcome="timeout", engine="pandas", message="late", wall_s=30.0),
        make_record(),
        passed(make_record).model_copy(update={"wall_s": 1.0}),
        passed(make_record, engine="polars", gate={"status": "no-reference"}).model_copy(
            update={"wall_s": 0.1}
        ),
    ]
    table = leaderboard.board(records).lines
    assert [(line[0], line[1], line[2]) for line in table] == [
        ("1", "none", "onnxruntime"),
        ("2", "none", "torch_eager"),
        ("", "polars", "onnxruntime"),
        ("", "pandas", "torch_eager"),
    ]
    assert [line[-1] for line in table] == ["ok", "ok", "ok, not ranked (no-reference)", "timeout"]
    assert table[1][5:10] == ("0.9000", "2.00", "1.50", "100", "6.67 %")


NOT_STARTED: dict[str, Any] = {
    "enforcement": "none",
    "outcome": "unsupported",
    "message": "no",
    "wall_s": 0.0,
}
NOT_STARTED |= {"phases": [], "samples": {}, "scores": {}, "cpu_s": None, "peak_memory_bytes": None}


def test_imports_are_shown_where_they_were_measured(make_record: Make) -> None:
    """The median over runs of the sum over packages: of 0.75 and 1.25 s, and none of an older record."""
    older = make_record()
    assert "of which imports s" not in leaderboard.phase_table([older]).names
    assert not any("imports" in note for note in record_text.phases(older).notes)
    runs = [
        make_record(**ORT, repeat=i, details={"import_s": {"torch": 0.5 * (i + 1), "polars": 0.25}})
        for i in range(2)
    ]
    table = leaderboard.phase_table([older, *runs])
    column = table.names.index("of which imports s")
    assert {line[1]: line[column] for line in table.lines} == {"torch_eager": "", "onnxruntime": "1.000"}
    assert "of which imports: torch 1.000 s, polars 0.250 s" in record_text.phases(runs[1]).notes


def test_figures_that_were_not_measured_are_empty(make_record: Make, choose: Choose) -> None:
    """They are never zero: neither for a run that was not started, nor for a phase that a run did not reach."""
    lost = make_record(engine="polars", gate={"status": "unscored"}, **NOT_STARTED)
    more = [{"name": "load", "wall_s": 2.0, "cpu_s": 1.0, "peak_memory_bytes": 1}]
    other = make_record(engine="pandas", phases=more, samples={})
    group = [make_record(), lost, make_record(repeat=1).model_copy(update={"phases": other.phases}), other]
    assert [line[5:10] for line in leaderboard.board(group).lines if line[1] == "polars"] == [
        ("", "", "", "", "")
    ]
    assert leaderboard.phase_table(group).names[4:7] == ("start s", "predict s", "load s")
    assert {line[0]: line[4:7] for line in leaderboard.phase_table(group).lines} == {
        "none": ("0.500", "1.500", "2.000"),
        "pandas": ("", "", "2.000"),
    }
    (entry,) = [e for e in page_runs.boards(group, {})[0].entries if e.first.engine == "pandas"]
    assert entry.phases == [("load", 2.0)]
    (cells,) = [
        line
        for g in comparison.groups(group, "fake")
        for line in compare_text.tables(comparison.compare(g, choose().task, None, {}, []), [])[0].lines
        if line[0].startswith("polars")
    ]
    assert cells[2:] == ("unsupported", *[""] * 9)


def test_a_repetition_that_was_not_started_has_no_time(make_record: Make) -> None:
    (row,) = repetitions.rows(
        [make_record(), make_record(repeat=1, gate={"status": "unscored"}, **NOT_STARTED)]
    )
    assert (row.wall_s, row.ranked) == (2.0, False)


def test_repetitions_are_summarised_by_the_median(make_record: Make) -> None:
    runs = [make_record(repeat=i).model_copy(update={"wall_s": w}) for i, w in enumerate([3.0, 1.0, 2.0])]
    (line,) = leaderboard.board(runs).lines
    assert line[6] == "2.00 (of 3)"


def test_head_room_comes_from_the_median_time_and_the_highest_peak(make_record: Make, choose: Choose) -> None:
    """The leaderboard and the page show the shares that were used, the comparison those that are left; without a limit there is none."""
    figures = [(3.0, 10**8), (1.0, 10**9)]
    runs = [
        make_record(repeat=i, peak_memory_bytes=peak).model_copy(update={"wall_s": wall})
        for i, (wall, peak) in enumerate(figures)
    ]
    (row,) = repetitions.rows(runs)
    assert (row.head_room.time, row.head_room.memory) == pytest.approx((1 - 2 / 30, 1 - 1e9 / 2e9))
    assert leaderboard.board(runs).lines[0][9] == "6.67 %"
    (entry,) = page_runs.boards(runs, {})[0].entries
    (group,) = comparison.groups(runs, "fake")
    (table, *_) = compare_text.tables(comparison.compare(group, choose().task, None, {}, []), [])
    assert [cell.text for cell in entry.cells(with_work=False).content[9:11]] == ["6.67 %", "50.0 %"]
    assert list(table.lines[0][7:9]) == ["93.3 %", "50.0 %"]
    unlimited = runs[0].budget.model_copy(update={"time_s": None, "memory_bytes": None})
    (free,) = repetitions.rows([make_record(budget=unlimited)])
    assert free.head_room == repetitions.HeadRoom(None, None)
    assert leaderboard.time_used(free) == leaderboard.memory_used(free) == ""


@pytest.mark.parametrize(("count", "shown"), [(458, False), (459, True)])
def test_a_p99_is_shown_from_the_count_that_bench_requires(
    make_record: Make, count: int, shown: bool
) -> None:
    (row,) = repetitions.rows([make_record().model_copy(update={"samples": {"latency": [0.001] * count}})])
    assert ("p99" in leaderboard.latency(row)) == shown


def test_the_newest_record_of_a_run_counts(make_record: Make) -> None:
    old = make_record(created=datetime(2020, 1, 1, tzinfo=UTC), outcome="error")
    (line,) = leaderboard.board([make_record(), old]).lines
    assert line[-1] == "ok"


def test_markdown_names_machine_and_data(make_record: Make) -> None:
    text = leaderboard.markdown([make_record(notes=["a stand-in"]), make_record(job="fit", engine="fitter")])
    assert "a processor (AVX2), 2 cores, 16 GiB, no GPU" in text
    assert "generated data" in text
    assert "- a stand-in" in text
    assert "fitter" not in text
    assert leaderboard.markdown([]).startswith("# Leaderboard")


def test_published_figures_stand_beside_runs_of_their_data_only(make_record: Make) -> None:
    assert "not measured by buzzer" not in leaderboard.markdown([make_record()])
    text = leaderboard.markdown([make_record(task="recsys2021-full", engine="pandas")])
    assert "not measured by buzzer" in text
    assert "Schifferer et al., RecSys Challenge 2021" in text
    assert "| booking |" not in text


def test_scores_of_random_weights_are_compared_but_not_shown(make_record: Make, choose: Choose) -> None:
    random = {"config": {"weights": "random"}, "config_hash": "2" * 12}
    reference = make_record(**random)
    judged = gate.judge(make_record(**ORT, **random, scores={"accuracy": 0.5}), choose().task, [reference])
    assert judged.outcome == "wrong"
    same = gate.judge(make_record(**ORT, **random), choose().task, [reference])
    assert (same.gate.status, same.score, reference.score) == ("passed", None, None)
    assert "0.9000" in leaderboard.markdown([make_record()])
    board = leaderboard.markdown([reference, same])
    assert "onnxruntime" in board and "0.9000" not in board
    latency = [r.model_copy(update={"samples": {"latency": [0.01]}}) for r in (make_record(), reference)]
    assert [len(frontier.points([r], 6)) for r in latency] == [1, 0]
    assert ["score_accuracy" in frame.row(r) for r in (make_record(), reference)] == [True, False]
    (group,) = comparison.groups([reference, same], "fake")
    result = comparison.compare(group, choose().task, None, {}, [])
    assert [run.scores for run in compare_json.data(result, []).runs] == [{}, {}]


def test_the_best_possible_scores_stand_beside_the_scores(make_record: Make) -> None:
    text = leaderboard.markdown([make_record(details={"ceiling": 0.95})])
    assert "accuracy 0.9000; best possible on these generated data 0.9500" in text
    by_name = make_record(details={"ceiling": 0.95, "ceilings": {"accuracy": 0.95, "AP": 0.5}})
    text = leaderboard.markdown([by_name])
    assert "accuracy 0.9000; best possible on these generated data: accuracy 0.9500, AP 0.5000" in text
    unscored = make_record(config={"weights": "random"}, details={"ceiling": 0.95})
    assert "best possible" not in leaderboard.markdown([unscored])

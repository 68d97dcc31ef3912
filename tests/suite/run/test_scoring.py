"""The compared time ends when scoring begins, the time limit applies to it, and any report of a run becomes one record."""

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buzzer.suite.analysis import comparison, regress
from buzzer.suite.budget import Budget
from buzzer.suite.records import integrity, record, repetitions
from buzzer.suite.records.collection import load_records
from buzzer.suite.records.schema import SCHEMA_MINOR, Phase, Record
from buzzer.suite.report import leaderboard, page, page_runs, readme, summary
from buzzer.suite.report.display import Quiet
from buzzer.suite.run import events, fits, limits, record_builder, task_runs
from buzzer.suite.run.events import Done, Failed
from buzzer.suite.run.executor import Executor
from buzzer.suite.run.limits import Measured, Reason
from buzzer.suite.run.plan import TaskSelection, predict_runs, task_by_task
from buzzer.suite.run.progress import RunProgress
from buzzer.suite.run.record_builder import Usage
from buzzer.suite.run.supervise import over_time

Predict = Callable[..., Record]
Make = Callable[..., Record]
ROOT = Path(__file__).parents[3]
LIMIT = Budget("1c2g3s", 1, 2 * 10**9, 3.0)
DONE = Done(2.9, 0.0, {"accuracy": 0.9}, 10, {}, [], {}, [])
SCORE = {"name": "score", "wall_s": 5.0, "cpu_s": 4.0, "peak_memory_bytes": 10**9}


def phases(r: Record) -> dict[str, Phase]:
    return {p.name: p for p in r.phases}


def check_valid(r: Record, folder: Path) -> None:
    """Check that the record is valid: `buzzer check` reports at most the fake fingerprint."""
    (problems,) = integrity.check([record.write(r, folder / "checked")]).values()
    assert problems in ([], ["data_fingerprint is not a sha256"])


def test_scoring_is_recorded_and_not_compared(predict: Predict, enforcement: str, tmp_path: Path) -> None:
    r = predict("score-heavy")
    score = phases(r)["score"]
    assert (r.outcome, r.schema_minor, r.scoring) == ("ok", SCHEMA_MINOR, "outside")
    assert r.score_s == score.wall_s
    assert score.cpu_s >= 1.5
    assert score.peak_memory_bytes > 300e6
    assert r.cpu_s is not None
    assert r.cpu_s < score.cpu_s
    assert r.peak_memory_bytes is not None
    assert r.peak_memory_bytes < 300e6
    assert sum(p.wall_s for p in r.compared) == pytest.approx(r.wall_s, rel=0.01)
    check_valid(r, tmp_path)


def test_scoring_may_outlast_the_budget(predict: Predict) -> None:
    r = predict("score-long", "1c2g6s")
    assert (r.outcome, r.message) == ("ok", "")
    assert r.score_s is not None
    assert r.score_s > 6


def test_scoring_that_hangs_is_ended(
    predict: Predict, enforcement: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limit_s = 0.5
    monkeypatch.setattr(limits, "scoring_s", lambda budget: limit_s)
    r = predict("score-hang")
    assert (r.outcome, r.phase_reached) == ("error", "score")
    assert f"scoring took longer than {limit_s:g} s" in r.message
    assert sum(p.wall_s for p in r.compared) == pytest.approx(r.wall_s, rel=0.01)
    assert (r.score_s or 0) > limit_s
    check_valid(r, tmp_path)


@pytest.mark.parametrize(
    ("do", "outcome", "message"),
    [
        ("score-crash", "error", "RuntimeError: no truth"),
        ("score-again", "error", "phase predict comes after score"),
        ("score-cheat", "error", "submission.csv changed after phase score began"),
        ("score-nan", "wrong", "no finite score: accuracy is nan"),
        ("score-no-number", "error", "what the run reported is not a valid record: scores.accuracy"),
        ("score-by-another-name", "error", "the task returned no score 'accuracy'; it has: acuracy"),
        ("score-above-one", "error", "score accuracy is 90"),
        ("score-no-rows", "error", "the task predicted no rows"),
        ("scribble", "error", "a line that is not an event"),
        ("grouped", "device-oom", "out_of_memory"),
        ("odd-name", "error", "no such file: ?.csv"),
        ("flood", "error", "RuntimeError: flooded"),
    ],
)
def test_any_report_of_a_run_becomes_one_record(
    predict: Predict, tmp_path: Path, do: str, outcome: str, message: str
) -> None:
    r = predict(do)
    assert r.outcome == outcome
    assert message in r.message
    assert r.gate.status == ("failed" if outcome == "wrong" else "unscored")
    assert sum(map(len, r.stderr_tail)) < 50_000
    if do == "grouped":
        assert "out_of_memory" in "\n".join(r.stderr_tail)
    check_valid(r, tmp_path)


def test_the_suite_continues_after_a_run_without_a_score(
    tmp_path: Path,
    fake_path: None,
    data: Any,
    choose: Callable[..., TaskSelection],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BUZZER_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    steps = task_runs.steps(task_by_task([choose("score-nan", repeat=2)]), [data], out)
    records = list(Executor(out, Quiet()).run(steps))
    assert [(r.job, r.outcome) for r in records] == [("fit", "ok"), *[("predict", "wrong")] * 4]
    assert len(load_records(tmp_path / "out")) == 5


def usage(reason: Reason = Reason.SELF) -> Usage:
    """The usage of a process that ended for this reason after 9 s."""
    return Usage(0.0, Measured(reason, 0, 1.0, 1), 9.0)


@pytest.mark.parametrize(
    ("wall_s", "reason", "outcome"),
    [
        (2.9, Reason.SELF, "ok"),
        (3.0, Reason.SELF, "ok"),
        (3.1, Reason.SELF, "timeout"),
        (2.9, Reason.TIME, "ok"),  # it ended just before it was stopped
        (3.1, Reason.TIME, "timeout"),
        (2.9, Reason.MEMORY, "host-oom"),
    ],
)
def test_the_limit_holds_for_what_is_compared(wall_s: float, reason: Reason, outcome: str) -> None:
    progress = RunProgress(end=replace(DONE, wall_s=wall_s))
    ending = record_builder.ending_of(progress, usage(reason), LIMIT)
    assert ending.outcome == outcome
    assert ("the buzzer went" in ending.message) == (outcome == "timeout")


@pytest.mark.parametrize(
    ("running", "since", "age", "reason"),
    [
        ("predict", 0.1, 2.9, Reason.SELF),
        ("predict", 0.1, 3.1, Reason.TIME),
        ("score", 2.9, 62.8, Reason.SELF),
        ("score", 2.9, 63.0, Reason.SCORING),
    ],
)
def test_when_a_run_is_ended(running: str, since: float, age: float, reason: Reason) -> None:
    progress = RunProgress(running=running, running_since_s=since)
    assert over_time(progress, age, LIMIT) is reason
    assert over_time(progress, age, Budget("unlimited")) is Reason.SELF
    assert over_time(RunProgress(running=running, end=DONE), age, LIMIT) is Reason.SELF


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '"done"',
        "[" * 100_000,
        '{"event": "dance"}',
        '{"event": "phase_started", "name": "load"}',
        '{"event": "phase_started", "name": "load", "at_s": NaN, "born_s": 0.0}',
        '{"event": "phase_started", "name": "load", "at_s": "0.0", "born_s": 0.0}',
        '{"event": "phase_started", "name": "\\udc00", "at_s": 0.0, "born_s": 0.0}',
        '{"event": "phase_ended", "name": "load", "wall_s": -1.0, "cpu_s": 0.0, "peak_memory_bytes": 0, "laps": []}',
        '{"event": "phase_ended", "name": "load", "wall_s": 1e999, "cpu_s": 0.0, "peak_memory_bytes": 0, "laps": []}',
        '{"event": "phase_ended", "name": "load", "wall_s": 1.0, "cpu_s": 0.0, "peak_memory_bytes": 0, "laps": null}',
        '{"event": "done", "wall_s": 1.0, "overhead_s": 0.0, "scores": {}, "rows": "7", "details": {}, "notes": [], "samples": {}, "files": []}',
        '{"event": "done", "wall_s": 1.0, "overhead_s": 0.0, "scores": {}, "rows": 7, "details": {}, "notes": [], "samples": {}, "files": [], "bench": {"batch": 1}}',
        '{"event": "done"}',
        '{"event": "failed", "message": "x"}',
    ],
)
def test_a_line_that_is_not_an_event_is_an_error(line: str) -> None:
    progress = RunProgress(running="load", born_s=0.0, closed_s=0.0 if "started" in line else None)
    progress.apply_line(line + "\n")
    progress.apply_line(events.to_line(Failed("unsupported", "later", "")))
    assert progress.end is None
    ending = record_builder.ending_of(progress, usage(), LIMIT)
    assert (ending.outcome, "not an event" in ending.message) == ("error", True)


def outside(make: Make, **changes: Any) -> Record:
    """A record of the new rule: 2 s of work, then 5 s of scoring."""
    new = {
        "schema_minor": 1,
        "run_id": "b" * 32,
        "score_s": 5.0,
        "phases": [*make().model_dump()["phases"], SCORE],
    }
    return make(**(new | changes))


def test_the_two_rules_never_share_a_board(make_record: Make, tmp_path: Path) -> None:
    old, new = make_record(), outside(make_record)
    check_valid(new, tmp_path)
    assert [len(group) for group in repetitions.boards([old, new]).values()] == [1, 1]
    text = leaderboard.markdown([old, new])
    assert text.count("wall time includes scoring") == text.count("wall time ends before scoring") == 1
    assert len(comparison.groups([old, new], "fake")) == 2
    assert comparison.aa_pairs([old, new.model_copy(update={"control": True})]) == []
    assert regress._self(old) != regress._self(new)
    assert comparison.noise([old, new], old, 1) is None


DIFFERENT: dict[str, dict[str, Any]] = {
    "parameters": {"config_hash": "0" * 12},
    "machine": {"machine": {"cpu": "another", "cores": 2, "memory_bytes": 2**34, "gpus": []}},
    "data": {"data_fingerprint": "e" * 64},
    "task": {"task": "other"},
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_differs_never_shares_a_board(make_record: Make, what: str) -> None:
    records = [make_record(), make_record(run_id="b" * 32, **DIFFERENT[what])]
    assert [len(group) for group in repetitions.boards(records).values()] == [1, 1]
    if what in ("parameters", "machine"):
        assert len(comparison.groups(records, "fake")) == 2
    assert regress._self(records[0]) != regress._self(records[1])


def test_the_page_draws_scoring_separately_from_the_phases(make_record: Make) -> None:
    old, new = make_record(), outside(make_record)
    assert "score, after the wall time" not in page.html([old], {})
    text = page.html([old, new], {})
    assert "score, after the wall time" in text
    assert '<td class="n">5.000</td>' in text
    stages = [entry.phases for board in page_runs.boards([new], {}) for entry in board.entries]
    assert stages == [[("start", 0.5), ("predict", 1.5)]]


def test_a_run_of_the_old_rule_is_not_resumed_from(
    fake_path: None, make_record: Make, choose: Callable[..., TaskSelection], data: Any
) -> None:
    (run, _) = predict_runs(choose())
    same = {"budget": run.budget.as_dict(), "data_fingerprint": data.fingerprint}
    same |= {"fit_id": fits.fit_id(run, data)}
    assert run.matches(outside(make_record, **same), data)
    assert not run.matches(make_record(**same), data)


def test_the_readme_shows_the_new_rule_and_names_the_old_one(make_record: Make) -> None:
    old, new = make_record(), outside(make_record)
    tables = [readme.result_table(summary.summaries(records), 1) for records in ([old], [old, new], [new])]
    assert ["include scoring" in text for text in tables] == [True, False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score_s": 1.0}, "phase score took 5.000 s, score_s is 1.000 s"),
        ({"score_s": None}, "score_s is 0.000 s"),
        ({"wall_s": 7.0}, "phases add up to 2.000 s, wall_s is 7.000 s"),
        ({"schema_minor": 0, "score_s": None}, "phases add up to 7.000 s, wall_s is 2.000 s"),
        ({"schema_minor": 2}, "schema_minor"),
    ],
)
def test_a_record_must_follow_its_rule(make_record: Make, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        outside(make_record, **change)


PREDICTS = ("predict", "predict_steps", "_predict")


def predicts() -> dict[str, list[str]]:
    """The phases that each task's `predict` names, in the order of the source."""
    phases = {}
    for path in sorted((ROOT / "models").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name in PREDICTS:
                names = [
                    (y.lineno, y.value.value)
                    for y in ast.walk(node)
                    if isinstance(y, ast.Yield) and isinstance(y.value, ast.Constant)
                ]
                if names and any(name == "load" for _, name in names):
                    phases[str(path.relative_to(ROOT))] = [str(name) for _, name in sorted(names)]
    return phases


def test_every_task_scores_last_and_once() -> None:
    """A `predict` function without a phase `load` is part of one that has it."""
    phases = predicts()
    assert len(phases) == 8
    for path, names in phases.items():
        assert names[-2:] == ["write", "score"], path
        assert names.count("score") == 1, path

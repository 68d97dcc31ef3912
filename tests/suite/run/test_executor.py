"""The executor's rules, tested with a workload whose records are written by hand. No process is started."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buzzer.errors import DataError, UnsupportedError
from buzzer.models.api.context import Data
from buzzer.suite.records.collection import load_records
from buzzer.suite.records.schema import SCHEMA_MINOR, Record
from buzzer.suite.run import fits, runner
from buzzer.suite.run.executor import Executor, Level, Step, is_record_of
from buzzer.suite.run.plan import FAILURES, Run, TaskSelection, interleaved, task_by_task
from buzzer.suite.run.supervise import PhaseCallback

Make = Callable[..., Record]
Choose = Callable[..., TaskSelection]
BOTH = ["torch_eager", "onnxruntime"]
PHASES = [
    {"name": name, "wall_s": seconds, "cpu_s": 0.1, "peak_memory_bytes": 10**7}
    for name, seconds in (("start", 0.5), ("predict", 1.5), ("score", 0.1))
]


class Recorder:
    """An observer that keeps what it receives."""

    def __init__(self) -> None:
        self.runs = 0
        self.finished_runs: list[str] = []
        self.messages: list[tuple[Level, str]] = []

    def planned(self, runs: int) -> None:
        self.runs = runs

    def preparing(self, share: float, what: str) -> None:
        raise AssertionError("nothing is prepared here")

    def phase(self, run: Run, name: str, elapsed_s: float, part: object) -> None:
        raise AssertionError("no run has a phase here")

    def finished(self, run: Run, record: Record) -> None:
        self.finished_runs.append(f"{run.job} {run.backend}")

    def message(self, text: str, level: Level = "info") -> None:
        self.messages.append((level, text))


class Workload:
    """Ends each run as `endings` says: by job or backend, an outcome or "interrupted"."""

    fit_name, keeps_fit = "fit", True

    def __init__(self, data: Data, make: Make, endings: dict[str, str]) -> None:
        self.data, self.make, self.endings = data, make, endings
        self.fits, self.runs = 0, list[Run]()

    def record_of(self, run: Run, name: str) -> Record:
        ending = self.endings.get(name, "ok")
        stopped = ending == "interrupted"
        fields: dict[str, Any] = {"job": run.job, "engine": run.engine, "backend": run.backend}
        fields |= {"repeat": run.repeat, "control": run.control, "data_fingerprint": self.data.fingerprint}
        fields |= {"run_id": f"{self.fits + len(self.runs):032x}", "fit_id": fits.fit_id(run, self.data)}
        fields |= {"schema_minor": SCHEMA_MINOR, "config_hash": run.task.config_hash}
        fields |= {"phases": PHASES, "score_s": 0.1, "gate": {"status": "reference"}}
        if ending != "ok":
            fields |= {"outcome": "error" if stopped else ending, "message": "it failed", "scores": {}}
            fields |= {"gate": {"status": "unscored"}, "details": {"interrupted": True} if stopped else {}}
        return self.make(**fields)

    def fit(self, run: Run, watch: PhaseCallback) -> Record | None:
        self.fits += 1
        return None if self.endings.get("fit") == "cached" else self.record_of(run, "fit")

    def resolved(self, run: Run) -> Run:
        return run

    def execute(self, run: Run, others: Sequence[Record], watch: PhaseCallback) -> Record:
        self.runs.append(run)
        return self.record_of(run, run.backend)

    def outcome_without(self, fit: Record) -> str:
        return fit.outcome

    def is_done(self, run: Run, past: Record) -> bool:
        return is_record_of(run, self.data, past)

    def recorded(self, record: Record) -> None:
        pass


@pytest.fixture
def workload(fake_path: None, data: Data, make_record: Make) -> Callable[..., Workload]:
    """Makes a workload whose runs end as given."""
    return lambda **endings: Workload(data, make_record, endings)


def steps_of(selection: TaskSelection, workload: Workload) -> list[Step]:
    return [Step(run, workload) for _, run in task_by_task([selection]).runs]


def outcomes(records: Sequence[Record]) -> list[tuple[str, str, str]]:
    return [(r.job, r.backend, r.outcome) for r in records]


def test_every_run_has_a_record_on_disk(
    tmp_path: Path, choose: Choose, workload: Callable[..., Workload]
) -> None:
    observer = Recorder()
    executor = Executor(tmp_path / "out", observer)
    records = list(executor.run(steps_of(choose(), workload())))
    assert outcomes(records) == [("fit", BOTH[0], "ok"), *(("predict", b, "ok") for b in BOTH)]
    assert observer.runs == 2
    assert observer.finished_runs == ["fit torch_eager", "predict torch_eager", "predict onnxruntime"]
    assert {r.run_id for r in load_records(tmp_path / "out")} == {r.run_id for r in records}
    assert executor.records == records


def test_a_cached_fit_has_no_record(
    tmp_path: Path, choose: Choose, workload: Callable[..., Workload]
) -> None:
    records = list(Executor(tmp_path / "out", Recorder()).run(steps_of(choose(), workload(fit="cached"))))
    assert [r.job for r in records] == ["predict", "predict"]


def test_nothing_is_fitted_for_runs_that_cannot_start(
    tmp_path: Path, choose: Choose, workload: Callable[..., Workload]
) -> None:
    done, problem = workload(), UnsupportedError("not here")
    fit, *timed = steps_of(choose(), done)
    steps = [fit, *(replace(step, problem=problem) for step in timed)]
    records = list(Executor(tmp_path / "out", Recorder()).run(steps))
    assert outcomes(records) == [("predict", b, "unsupported") for b in BOTH]
    assert (done.fits, done.runs) == (0, [])
    assert [r.job for r in Executor(tmp_path / "other", Recorder()).run([fit])] == ["fit"]


@pytest.mark.parametrize("ending", ["error", "unsupported"])
def test_runs_whose_fit_failed_are_not_started(
    tmp_path: Path, choose: Choose, workload: Callable[..., Workload], ending: str
) -> None:
    done = workload(fit=ending)
    records = list(Executor(tmp_path / "out", Recorder()).run(steps_of(choose(), done)))
    assert done.runs == []
    assert [r.outcome for r in records] == [ending] * 3
    assert {r.message for r in records[1:]} == {f"its fit ended {ending}: it failed"}


@pytest.mark.parametrize(("stopped", "count"), [("fit", 1), ("torch_eager", 2), ("onnxruntime", 3)])
def test_the_run_that_the_user_stops_is_the_last(
    tmp_path: Path, choose: Choose, workload: Callable[..., Workload], stopped: str, count: int
) -> None:
    observer = Recorder()
    executor = Executor(tmp_path / "out", observer)
    records = list(executor.run(steps_of(choose(), workload(**{stopped: "interrupted"}))))
    assert len(records) == count == len(load_records(tmp_path / "out"))
    assert executor.interrupted and runner.interrupted(records[-1])
    assert observer.messages == [
        ("info", "interrupted; the records of finished runs are on disk; `--resume` does the remaining runs")
    ]


@pytest.mark.parametrize("ending", ["error", "interrupted"])
def test_a_reference_without_a_record_fails_the_runs(
    tmp_path: Path, choose: Choose, workload: Callable[..., Workload], ending: str
) -> None:
    """As in `buzzer bench`: one record if the user stopped the reference, else one for each run."""
    done = workload(fit=ending)
    done.fit_name, done.keeps_fit = "reference", False
    executor = Executor(tmp_path / "out", Recorder())
    records = list(executor.run(steps_of(choose(), done)))
    assert len(records) == (1 if ending == "interrupted" else 2)
    assert executor.interrupted == (ending == "interrupted")
    assert {r.message for r in records} == {"its reference ended error: it failed"}


def test_the_record_of_a_run_that_cannot_run_here_says_why(
    tmp_path: Path, choose: Choose, workload: Callable[..., Workload]
) -> None:
    fit, first, second = steps_of(choose(), workload())
    second = replace(second, problem=UnsupportedError("not installed", "install it"))
    records = list(Executor(tmp_path / "out", Recorder()).run([fit, first, second]))
    assert [(r.outcome, r.message, r.hint) for r in records[2:]] == [
        ("unsupported", "not installed", "install it")
    ]


@pytest.mark.parametrize(
    ("ending", "give_up", "runs"), [("error", (), 3), ("error", FAILURES, 1), ("error", {"unsupported"}, 3)]
)
def test_a_variant_is_given_up(
    tmp_path: Path,
    choose: Choose,
    workload: Callable[..., Workload],
    ending: str,
    give_up: frozenset[str],
    runs: int,
) -> None:
    done = workload(onnxruntime=ending)
    list(Executor(tmp_path / "out", Recorder()).run(steps_of(choose(repeat=3), done), give_up))
    assert sum(run.backend == "onnxruntime" for run in done.runs) == runs
    assert sum(run.backend == "torch_eager" for run in done.runs) == 3


def test_resume_does_what_is_left_and_fits_only_for_that(
    tmp_path: Path, choose: Choose, workload: Callable[..., Workload]
) -> None:
    first, again, third = workload(onnxruntime="error"), workload(), workload()
    steps = steps_of(choose(), first)
    records = list(Executor(tmp_path / "out", Recorder()).run(steps))
    observer = Recorder()
    executor = Executor(tmp_path / "out", observer, resume=True)
    assert observer.messages == []
    again.fits = 100  # gives other run_ids
    rest = list(executor.run(steps_of(choose(), again)))
    assert outcomes(rest) == [("fit", BOTH[0], "ok"), ("predict", BOTH[1], "ok")]
    assert [r.run_id for r in executor.reused] == [records[1].run_id]
    assert observer.runs == 1
    skipped = "- fake predict torch_eager fp32 (1c2g30s, scale 1, round 1): has a record, skipped"
    assert observer.messages == [("info", skipped)]
    assert list(Executor(tmp_path / "out", Recorder(), resume=True).run(steps_of(choose(), third))) == []
    assert third.fits == 0


def test_without_resume_everything_is_done_again(
    tmp_path: Path, choose: Choose, workload: Callable[..., Workload]
) -> None:
    for number in range(2):
        done = workload()
        done.fits = 100 * number
        assert len(list(Executor(tmp_path / "out", Recorder()).run(steps_of(choose(), done)))) == 3


def test_records_that_check_finds_wrong_are_left_out(
    tmp_path: Path, choose: Choose, workload: Callable[..., Workload]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "broken.json").write_text("{")
    observer = Recorder()
    assert Executor(tmp_path / "out", observer).past == []
    ((level, text),) = observer.messages
    assert level == "warning" and text.startswith(f"left out: {tmp_path / 'out' / 'broken.json'}: ")


def test_a_folder_that_cannot_be_written_is_reported_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DataError, match="cannot write"):
        Executor(tmp_path / "out", Recorder())


def test_a_comparison_fits_first_and_shuffles_all_rounds_but_the_first(choose: Choose) -> None:
    selections = [choose(scale=scale, repeat=4) for scale in (0.5, 1.0)]
    plan = interleaved(selections, seed=0)
    assert [run.job for _, run in plan.runs[:2]] == ["fit", "fit"]
    rounds = [[run for run in plan.timed if run.repeat == n] for n in range(4)]
    keys = [[(run.scale, run.backend, run.control) for run in turn] for turn in rounds]
    assert keys[0] == [
        (s, *v) for s in (0.5, 1.0) for v in ((BOTH[0], False), (BOTH[1], False), (BOTH[0], True))
    ]
    assert all(sorted(turn) == sorted(keys[0]) for turn in keys)
    assert len({tuple(turn) for turn in keys}) > 1
    assert plan == interleaved(selections, seed=0) != interleaved(selections, seed=1)
    assert [number for number, _ in plan.runs] == [
        *(0, 1),
        *(selections.index(next(s for s in selections if s.scale == run.scale)) for run in plan.timed),
    ]

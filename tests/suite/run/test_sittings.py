"""A run that was interrupted goes on: nothing is done twice, and no time is lost from its record."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buzzer import locks, manifest
from buzzer.errors import DataError
from buzzer.models.api.context import SCORE, Data
from buzzer.suite.budget import resolve
from buzzer.suite.records import checks, machine, record
from buzzer.suite.records.schema import Phase, Record
from buzzer.suite.run import fits, runner, sittings
from buzzer.suite.run.plan import Run, TaskSelection, fit_run, predict_runs
from buzzer.suite.run.record_builder import MORE_TIME
from buzzer.suite.run.sittings import NOTE, NOTE_S, Spent

HERE = Path(__file__).resolve().parents[1]
PIECE_S = 0.2  # of the fake task
Choose = Callable[..., TaskSelection]
Make = Callable[..., Record]


class Harness:
    """Does sittings of a run of the fake task with four pieces."""

    def __init__(self, choose: Choose, data: Data, home: Path, patch: pytest.MonkeyPatch) -> None:
        self.home, self.data, self.patch, self.lines = home, data, patch, list[str]()
        choice = choose("pieces")
        self.run: Run = predict_runs(choice)[0]
        runner.fit(fit_run(choice), data, home / "cache", lambda phase, elapsed, part: None)

    @property
    def folders(self) -> list[Path]:
        return list((self.home / "files").glob("partial-*"))

    def made(self) -> list[str]:
        return sorted(path.name for path in self.home.glob("files/partial-*/pieces/?"))

    def sitting(self, stop_after: int = 9, resume: bool = True, **changes: Any) -> Record:
        """A sitting that the user stops when there are `stop_after` pieces; it makes no more."""
        self.patch.setenv("FAKE_STOPS", str(stop_after))

        def watch(phase: str, elapsed: float, part: object) -> None:
            if len(self.made()) >= stop_after:
                raise KeyboardInterrupt

        run, cache = replace(self.run, **changes), self.home / "cache"
        return runner.predict(run, self.data, cache, self.home, (), watch, resume, self.lines.append)


@pytest.fixture
def harness(
    choose: Choose, data: Data, tmp_path: Path, fake_path: None, monkeypatch: pytest.MonkeyPatch
) -> Harness:
    return Harness(choose, data, tmp_path, monkeypatch)


def test_a_resumed_run_does_only_what_is_left(harness: Harness, enforcement: str) -> None:
    first = harness.sitting(stop_after=1)
    assert first.outcome == "error" and runner.interrupted(first) and first.sittings == 1
    assert first.hint == sittings.HINT
    assert harness.made() == ["a"]
    second = harness.sitting(stop_after=2)
    assert runner.interrupted(second) and second.sittings == 2
    assert harness.made() == ["a", "b"]
    last = harness.sitting()
    assert (last.outcome, last.sittings, last.details["made"]) == ("ok", 3, 2)
    assert harness.folders == []  # a finished run needs it no more
    (submission,) = harness.home.glob("files/*/submission.csv")
    assert submission.read_text() == "a\nb\nc\nd\n"
    assert second.wall_s > first.wall_s + PIECE_S / 2 and last.wall_s > second.wall_s
    assert last.wall_s > 4 * PIECE_S  # the first pieces count, although an earlier sitting made them
    assert last.cpu_s is not None and second.cpu_s is not None and last.cpu_s > second.cpu_s
    assert last.peak_memory_bytes is not None and second.peak_memory_bytes is not None
    assert last.peak_memory_bytes >= second.peak_memory_bytes >= (first.peak_memory_bytes or 0)
    assert any("3 sittings" in note for note in last.notes)
    assert [p.name for p in last.phases] == ["start", "load", "predict", "write", SCORE]
    for r in (first, second, last):
        assert checks.phases(r) + checks.samples(r) + checks.cpu(r) + checks.outcome(r) == []
    assert harness.lines[0].startswith("- fake predict torch_eager fp32: goes on after ")


def test_without_resume_a_run_begins_anew(harness: Harness) -> None:
    harness.sitting(stop_after=2)
    last = harness.sitting(resume=False)
    assert (last.outcome, last.sittings, last.details["made"]) == ("ok", 1, 4)
    assert harness.lines == [
        "- fake predict torch_eager fp32: pieces of an interrupted run are deleted: without --resume a run begins anew"
    ]


@pytest.mark.parametrize("changed", ["data", "fit", "library versions", "note", "machine"])
def test_a_change_of_anything_begins_anew(
    harness: Harness, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.sitting(stop_after=2)
    (folder,) = harness.folders
    match changed:
        case "note":
            (folder / NOTE).write_bytes(b'{"state": "\xff')
            changed = "their note cannot be read"
        case "library versions":
            monkeypatch.setattr(machine, "versions", lambda: {"python": "2.7"})
        case "machine":
            monkeypatch.setattr(machine, "describe", lambda facts: "another")
        case "data":  # only of the test: the fit stays
            harness.data = replace(harness.data, fingerprint="e" * 64, fit_fingerprint="f" * 64)
        case "fit":
            text = (folder / NOTE).read_text().replace("cpu-", "cuda-")
            (folder / NOTE).write_text(text)
    sitting = sittings.opened(
        harness.run, harness.data, fits_id(harness), harness.home, True, harness.lines.append
    )
    assert sitting.earlier is None and list(sitting.pieces.iterdir()) == []
    assert changed in harness.lines[-1]


def fits_id(harness: Harness) -> str:
    return fits.fit_id(harness.run, harness.data)


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "polars"},
        {"backend": "onnxruntime"},
        {"precision": "int8"},
        {"seed": 1},
        {"scale": 0.5},
        {"repeat": 1},
        {"control": True},
        {"budget": resolve("2c2g30s")},
        {"workers": 2},
    ],
)
def test_another_run_has_another_folder(harness: Harness, change: dict[str, Any]) -> None:
    def folder(run: Run) -> Path:
        return sittings.opened(run, harness.data, "cpu-0", harness.home, True, print).folder

    assert folder(harness.run) == folder(replace(harness.run))
    assert folder(replace(harness.run, **change)) != folder(harness.run)


def change_spent(harness: Harness, wall_s: float) -> None:
    """Set the wall seconds that the earlier sittings took by the note of the run."""
    (folder,) = harness.folders
    note = sittings.Note.model_validate_json((folder / NOTE).read_text())
    note.spent = note.spent.model_copy(update={"wall_s": wall_s})
    (folder / NOTE).write_text(note.model_dump_json())


def test_the_time_limit_is_that_of_the_sum(harness: Harness) -> None:
    """Each sitting alone would stay within the budget."""
    limit_s = harness.run.budget.time_s or 0.0
    first = harness.sitting(stop_after=1)
    assert runner.interrupted(first) and first.wall_s < limit_s
    assert harness.made() == ["a"]  # a second sitting takes PIECE_S at least
    change_spent(harness, limit_s - PIECE_S / 4)
    second = harness.sitting()
    assert second.outcome == "timeout" and second.sittings == 2 and second.wall_s > limit_s
    assert checks.outcome(second) == []
    assert harness.folders == []  # there is no time left to go on


def test_a_run_without_time_left_is_not_started(harness: Harness) -> None:
    first = harness.sitting(stop_after=1)
    change_spent(harness, 31.0)
    last = harness.sitting()
    assert runner.interrupted(first)
    assert (last.outcome, last.enforcement) == ("timeout", "none")
    assert checks.outcome(last) == [] and harness.folders == []


def test_pieces_that_cannot_be_deleted_are_not_used(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run that begins anew would have the pieces of the interrupted one without their time."""
    harness.sitting(stop_after=1)
    monkeypatch.setattr("shutil.rmtree", lambda path, ignore_errors: None)
    with pytest.raises(DataError, match=r"cannot create .*: File exists"):
        harness.sitting(resume=False)


def test_pieces_of_a_changed_fit_are_not_used(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "rewritten", lambda folder, before, sealed: ["model"])
    stopped = harness.sitting(stop_after=1)
    assert runner.interrupted(stopped) and stopped.hint != sittings.HINT
    assert harness.folders == []


def test_two_runs_do_not_share_a_folder(harness: Harness) -> None:
    """The lock of one cache does not hold back a run with another cache and the same `--out`."""
    harness.sitting(stop_after=1)
    (folder,) = harness.folders

    def watch(phase: str, elapsed: float, part: object) -> None:
        assert "waiting for process" in phase and harness.folders == [folder]
        raise KeyboardInterrupt

    with locks.held(folder.with_name(f".{folder.name}.lock"), print):
        stopped = runner.predict(harness.run, harness.data, harness.home / "cache", harness.home, (), watch)
    assert stopped.message == "interrupted while it waited for another process"
    assert harness.sitting().sittings == 2


def test_a_damaged_piece_is_made_again(harness: Harness) -> None:
    harness.sitting(stop_after=2)
    (folder,) = harness.folders
    (folder / "pieces" / "a" / "row").write_text("x\n")
    last = harness.sitting()
    assert (last.outcome, last.details["made"]) == ("ok", 3)
    (submission,) = harness.home.glob("files/*/submission.csv")
    assert submission.read_text() == "a\nb\nc\nd\n"


def test_a_run_that_fails_does_not_go_on(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run could get memory or luck in several tries."""
    harness.sitting(stop_after=1)
    monkeypatch.setenv("FAKE_FAILS", "1")
    failed = harness.sitting()
    assert (failed.outcome, failed.sittings) == ("error", 2) and not runner.interrupted(failed)
    assert harness.folders == []


def test_a_killed_harness_goes_on(harness: Harness, enforcement: str) -> None:
    """After `kill -9` the time until the last note counts, and the longest time between two notes."""
    env = os.environ | {
        "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}",
        "BUZZER_CACHE": str(harness.home / "cache"),
        "FAKE_STOPS": "2",
    }
    harness.data = Data(HERE / "old_records", "f" * 64, "generated", {"rows": 10}, 1.0)
    command = [sys.executable, str(HERE / "signal_harness.py"), str(harness.home), "pieces", "1"]
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(harness.made()) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    last = harness.sitting()
    assert harness.lines[0].startswith("- fake predict torch_eager fp32: goes on after ")
    assert (last.outcome, last.sittings, last.details["made"]) == ("ok", 2, 2)
    assert NOTE_S + 2 * PIECE_S < last.wall_s < NOTE_S + 60
    assert last.cpu_s is None and last.energy_j is None  # not known of the sitting that was killed
    assert checks.check_one(last.model_copy(update={"data_fingerprint": "f" * 64})) == []
    assert record.read(record.write(last, harness.home)).sittings == 2


def test_sums_and_peaks_by_hand() -> None:
    def phase(name: str, wall_s: float, cpu_s: float, peak: int) -> Phase:
        return Phase(name=name, wall_s=wall_s, cpu_s=cpu_s, peak_memory_bytes=peak)

    first = Spent(
        wall_s=3.0,
        cpu_s=2.0,
        peak_memory_bytes=10,
        energy_j={"cpu": 5.0},
        phases=[phase("start", 1.0, 0.5, 4), phase("predict", 2.0, 1.5, 10)],
        samples={"start": [1.0], "predict": [0.5, 1.5]},
    )
    second = Spent(
        wall_s=4.0,
        cpu_s=3.0,
        peak_memory_bytes=8,
        energy_j={"cpu": 6.0},
        phases=[phase("start", 1.5, 1.0, 5), phase("write", 2.5, 2.0, 8)],
        samples={"start": [1.5], "write": [2.5]},
    )
    both = sittings.plus(first, second)
    assert (both.sittings, both.wall_s, both.cpu_s, both.peak_memory_bytes) == (2, 7.0, 5.0, 10)
    assert both.energy_j == {"cpu": 11.0} and both.gpu_busy_s is None
    assert both.phases == [
        phase("start", 2.5, 1.5, 5),
        phase("predict", 2.0, 1.5, 10),
        phase("write", 2.5, 2.0, 8),
    ]
    assert both.samples == {"start": [1.0, 1.5], "predict": [0.5, 1.5], "write": [2.5]}
    killed = sittings.longer(first, 5.0)
    assert (killed.wall_s, killed.cpu_s) == (8.0, None)
    assert killed.phases[-1].wall_s == 7.0 and killed.samples["predict"] == [0.5, 1.5, 5.0]


def test_scoring_is_not_counted_twice(make_record: Make) -> None:
    """A run that was interrupted while scoring: its work is done, and the next sitting scores again."""

    def phase(name: str, wall_s: float) -> dict[str, Any]:
        return {"name": name, "wall_s": wall_s, "cpu_s": 0.1, "peak_memory_bytes": 1}

    ended = {"schema_minor": 1, "score_s": 3.0, "samples": {"predict": [2.0], SCORE: [3.0]}}
    stopped = make_record(
        phases=[phase("predict", 2.0), phase(SCORE, 3.0)], outcome="error", message="interrupted", **ended
    )
    last = make_record(phases=[phase("predict", 2.0), phase(SCORE, 3.0)], **ended)
    r = sittings.total(last, Spent.of(stopped))
    assert (r.wall_s, r.score_s, r.sittings) == (4.0, 3.0, 2)
    assert r.samples == {"predict": [2.0, 2.0], SCORE: [3.0]}
    day = last.budget.model_copy(update={"time_s": 3.9})
    late = sittings.total(last.model_copy(update={"budget": day}), Spent.of(stopped))
    assert (late.outcome, late.hint) == ("timeout", MORE_TIME)

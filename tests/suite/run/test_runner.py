import errno
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from rich.console import Console

from buzzer.errors import UsageError
from buzzer.models.api.context import Data
from buzzer.suite.budget import UNLIMITED
from buzzer.suite.cli.signals import ProgressDisplay
from buzzer.suite.records import record
from buzzer.suite.records.schema import Record
from buzzer.suite.report.display import Quiet
from buzzer.suite.run import fits, record_builder, runner, supervise, task_runs
from buzzer.suite.run.limits import Measured, Reason
from buzzer.suite.run.plan import TaskSelection, fit_run, predict_runs
from buzzer.suite.run.progress import Part, RunProgress
from buzzer.suite.run.record_builder import Usage
from buzzer.suite.run.worker import load_entry

Predict = Callable[..., Record]
Choose = Callable[..., TaskSelection]


def silent(phase: str, elapsed: float, part: object) -> None:
    """Ignore the progress."""


def test_all_of_a_good_run_is_measured(predict: Predict, enforcement: str, tmp_path: Path) -> None:
    r = predict("work")
    assert (r.outcome, r.message, r.enforcement) == ("ok", "", enforcement)
    assert [p.name for p in r.phases] == ["start", "load", "predict", "write", "score"]
    assert [p.name for p in r.compared] == ["start", "load", "predict", "write"]
    assert sum(p.wall_s for p in r.compared) == pytest.approx(r.wall_s, rel=0.01)
    assert len(r.samples["predict"]) == 3
    assert min(r.samples["predict"]) >= 0.02
    assert r.scores == {"accuracy": 0.9}
    assert r.gate.status == "reference"
    assert r.rows == 10
    assert r.details == {"threads": 1, "import_s": r.imports}
    assert r.peak_memory_bytes is not None
    assert r.peak_memory_bytes > 5e6
    assert r.cpu_s is not None
    assert r.cpu_s > 0
    # The GPU is not measured during a run on the CPU.
    assert (r.gpu_busy_s, r.gpu_peak_memory_bytes) == (None, None)
    assert (tmp_path / "files" / r.run_id[:8] / "submission.csv").read_text() == "1\n"
    assert record.read(record.write(r, tmp_path)).model_dump(exclude={"content_hash"}) == r.model_dump(
        exclude={"content_hash"}
    )


@pytest.mark.parametrize(
    ("do", "budget", "outcome", "message"),
    [
        ("eat", "1c200m30s", "host-oom", "over the memory limit in phase predict"),
        ("sleep", "1c2g2s", "timeout", "the buzzer went in phase predict"),
        ("crash", "1c2g30s", "error", "RuntimeError: something broke"),
        ("bad-data", "1c2g30s", "error", "train_set.csv:12: not a date"),
        ("no-gpu", "1c2g30s", "unsupported", "no CUDA device"),
        ("no-memory", "1c2g30s", "device-oom", "out_of_memory"),
        ("segfault", "1c2g30s", "error", "killed by signal 11 in phase predict"),
        ("exit-early", "1c2g30s", "error", "exit code 7 in phase predict"),
    ],
)
def test_every_end_becomes_a_valid_record(
    predict: Predict, enforcement: str, tmp_path: Path, do: str, budget: str, outcome: str, message: str
) -> None:
    r = predict(do, budget)
    assert r.outcome == outcome
    assert message in r.message
    assert r.phase_reached == "predict"
    assert [p.name for p in r.phases] == (["start", "load", "predict"])
    assert sum(p.wall_s for p in r.phases) == pytest.approx(r.wall_s, rel=0.01)
    assert r.gate.status == "unscored"
    record.read(record.write(r, tmp_path))
    assert not (tmp_path / "files" / r.run_id[:8]).exists()
    if do == "crash":
        assert "RuntimeError: something broke" in r.stderr_tail[-1]
    if do == "eat":
        assert r.peak_memory_bytes is not None
        assert 150e6 < r.peak_memory_bytes < 400e6


def test_nothing_outlives_a_killed_run(predict: Predict, enforcement: str, tmp_path: Path) -> None:
    r = predict("spawn", "1c2g2s")
    assert r.outcome == "timeout"
    pid = int((tmp_path / "files" / r.run_id[:8] / "pid").read_text())
    deadline = time.monotonic() + 30
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_scores_that_differ_from_the_reference_are_wrong(predict: Predict) -> None:
    reference = predict("be-wrong", variant=0)
    r = predict("be-wrong", variant=1, others=(reference,))
    assert reference.gate.status == "reference"
    assert (r.backend, r.outcome, r.gate.status) == ("onnxruntime", "wrong", "failed")
    assert r.gate.reference_run == reference.run_id
    assert r.gate.differences == pytest.approx({"accuracy": -0.5})
    assert "accuracy is 0.40000" in r.message


def test_data_without_the_truth_of_the_descriptor_are_refused(
    fake_path: None, choose: Choose, tmp_path: Path
) -> None:
    """Before the fit. Official files may lack their labels, and run without them."""
    choice = choose("work")
    choice = replace(choice, task=choice.task.model_copy(update={"truth": "labels*.csv"}))
    with pytest.raises(
        UsageError, match=r"fake: its data have no labels\*\.csv, the `truth` of its descriptor"
    ):
        task_runs.prepare(choice, None, Quiet(), tmp_path)
    task_runs.prepare(choice, tmp_path, Quiet(), tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "labels-2.csv").write_text("1\n")
    task_runs.prepare(choice, None, Quiet(), tmp_path)


@pytest.mark.parametrize("contents", ["the same", "others"])
def test_a_hard_link_to_an_input_is_no_change(
    fake_path: None, data: Data, choose: Choose, tmp_path: Path, contents: str
) -> None:
    """It changes the file's ctime, as does a program that writes a file and restores its mtime. The contents decide."""
    choice = choose("work")
    run, file = predict_runs(choice)[0], data.folder / "input.csv"
    fingerprint = (
        load_entry(choice.task.entry, "fake")
        .prepare(data.folder, tmp_path, run.scale, run.seed, lambda share, what: None)
        .fingerprint
    )
    data = replace(data, fingerprint=fingerprint if contents == "the same" else "f" * 64)
    runner.fit(fit_run(choice), data, tmp_path, silent)
    before = file.stat()

    def link(phase: str, elapsed: float, part: object) -> None:
        if not (tmp_path / "link").exists():
            os.link(file, tmp_path / "link")

    r = runner.predict(run, data, tmp_path, tmp_path, (), link)
    assert (file.stat().st_ctime_ns > before.st_ctime_ns) and file.stat().st_mtime_ns == before.st_mtime_ns
    changed = "" if contents == "the same" else "its inputs changed during the run: data/input.csv"
    assert (r.outcome, r.message) == ("error" if changed else "ok", changed)


def test_a_first_fit_tells_its_share_and_the_time_left(
    fake_path: None, data: Data, choose: Choose, tmp_path: Path
) -> None:
    parts = list[Part]()

    def watch(phase: str, elapsed: float, part: Part | None) -> None:
        if part is not None:
            assert phase == "fit"
            parts.append(part)

    run = fit_run(choose("slow-fit"))
    trained = runner.fit(run, data, tmp_path, watch)
    assert trained is not None and trained.outcome == "ok"
    assert parts and parts[0].share in (0.25, 0.5, 0.75)
    assert all(part.left_s is not None and 0 <= part.left_s < 60 for part in parts)


def test_a_failed_fit_leaves_no_finished_folder(
    tmp_path: Path, fake_path: None, data: Data, choose: Choose
) -> None:
    run = fit_run(choose("bad-fit"))
    r = runner.fit(run, data, tmp_path, silent)
    assert r is not None
    assert (r.outcome, r.hint) == ("unsupported", "install the extra")
    assert not fits.folder(run, data, tmp_path).exists()


GPU_FAULTS = {
    "no-memory": ("device-oom", "out_of_memory", "--gpus"),
    "old-driver": ("unsupported", "too old", "install a newer one"),
    "no-gpu": ("unsupported", "no CUDA device", "--engine polars"),
    "gpu-busy": ("unsupported", "busy or unavailable", "another process uses the GPU"),
    "refused": ("unsupported", "unsupported operations", "no automatic fallback"),
}


@pytest.mark.parametrize("phase", ["features", "fit", "transfer", "trees"])
@pytest.mark.parametrize("fault", GPU_FAULTS)
def test_a_gpu_fault_in_any_phase_is_recorded(
    fault: str, phase: str, tmp_path: Path, fake_path: None, data: Data, choose: Choose
) -> None:
    """The fault has its own outcome; the run does not continue without the GPU."""
    choice = choose(f"{fault} {phase}")
    choice = replace(choice, task=choice.task.model_copy(update={"entry": "fake_task:FAULTY"}))
    r = runner.fit(fit_run(choice), data, tmp_path, silent)
    if phase in ("transfer", "trees"):
        assert r is not None and r.outcome == "ok"
        r = runner.predict(predict_runs(choice)[0], data, tmp_path, tmp_path, (), silent)
    outcome, message, hint = GPU_FAULTS[fault]
    assert r is not None
    assert (r.outcome, r.phase_reached, r.scores) == (outcome, phase, {})
    assert message in r.message
    assert hint in r.hint
    record.read(record.write(r, tmp_path))


def test_ctrl_c_stops_the_run_and_is_recorded(
    tmp_path: Path, fake_path: None, enforcement: str, data: Data, choose: Choose
) -> None:
    choice = choose("sleep")
    runner.fit(fit_run(choice), data, tmp_path, silent)
    pressed = []

    def press(phase: str, elapsed: float, part: object) -> None:
        if phase == "predict" and not pressed:
            pressed.append(elapsed)
            raise KeyboardInterrupt

    r = runner.predict(predict_runs(choice)[0], data, tmp_path, tmp_path, (), press)
    assert runner.interrupted(r)
    assert (r.phase_reached, "predict" in r.samples) == ("predict", False)  # it was stopped while it slept


CTRL_C = """
import os, signal, time
from types import SimpleNamespace
import pytest
from rich.console import Console
from buzzer.suite.budget import UNLIMITED
from buzzer.suite.cli import signals as module
from buzzer.suite.cli.signals import ProgressDisplay

def press():
    os.kill(os.getpid(), signal.SIGINT)

run = SimpleNamespace(label="a run", budget=UNLIMITED, expected_s=None)
with ProgressDisplay(Console(quiet=True)) as display:
    press()  # deferred: a record might be half-written here
    with pytest.raises(KeyboardInterrupt):
        display.phase(run, "predict", 1.0)
    display.phase(run, "predict", 1.0)
    press()
    press()  # so soon after the first, it is ignored
    module.PATIENCE_S = 0.0
    with pytest.raises(KeyboardInterrupt):
        press()
        time.sleep(1)
with pytest.raises(KeyboardInterrupt):
    press()
    time.sleep(1)
print("done")
"""


def test_ctrl_c_waits_for_the_next_poll_and_a_second_one_does_not() -> None:
    """Tested in a separate process, because a signal to this process may reach threads of the test runner."""
    where = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", CTRL_C], capture_output=True, text=True, env=where, check=False
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


class Gone(io.StringIO):
    """The stream of a closed terminal."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("stream", [Gone(), io.TextIOWrapper(io.BytesIO(), "ascii")])
def test_output_that_cannot_be_shown_does_not_end_the_suite(
    make_record: Callable[..., Record], choose: Choose, stream: Any
) -> None:
    with ProgressDisplay(Console(file=stream)) as display:
        display.planned(1)
        failed = make_record(outcome="error", message="Ünsäyable \udcff", hint="✗")
        display.finished(predict_runs(choose())[0], failed)
        stream.close()
        display.message("more")


def test_the_overhead_is_what_the_harness_adds_to_a_run(
    tmp_path: Path, fake_path: None, data: Data, choose: Choose
) -> None:
    choice = choose()
    runner.fit(fit_run(choice), data, tmp_path, silent)
    began_s, own_cpu_s, polls = time.perf_counter(), time.process_time(), list[float]()
    r = runner.predict(
        predict_runs(choice)[0],
        data,
        tmp_path,
        tmp_path,
        (),
        lambda phase, elapsed, part: polls.append(elapsed),
    )
    outside_s = time.perf_counter() - began_s - r.wall_s - (r.score_s or 0.0)
    own_cpu_s = time.process_time() - own_cpu_s  # part of it is used during the run
    assert 0 < r.overhead_s < outside_s + own_cpu_s + 0.01 * r.wall_s
    assert len(polls) <= (r.wall_s + outside_s + (r.score_s or 0.0)) / supervise.POLL_S


def not_measured(exit_code: int, **changes: Any) -> Usage:
    return Usage(0.0, Measured(Reason.SELF, exit_code, None, None), **changes)


@pytest.mark.parametrize(
    ("usage", "message", "hint"),
    [
        (not_measured(-9), "killed by signal 9 in phase write", "run out of memory"),
        (not_measured(-4), "killed by signal 4 in phase write", "a library crashed"),
        (not_measured(-7), "killed by signal 7 in phase write", "a library crashed"),
        (not_measured(-11), "killed by signal 11 in phase write", "a library crashed"),
        (not_measured(-15), "killed by signal 15 in phase write", "another program stopped it"),
        (not_measured(1, stderr_tail=["x"]), "exit code 1 in phase write", "see stderr_tail"),
        (
            not_measured(1, temporary_full=True),
            f"no space left in {tempfile.gettempdir()}",
            "set TMPDIR to another folder",
        ),
        (not_measured(1), "exit code 1 in phase write", "stderr is empty"),
    ],
)
def test_the_end_of_a_process_is_explained(usage: Usage, message: str, hint: str) -> None:
    progress = RunProgress()
    progress.running = "write"
    outcome, said, advice = record_builder.explain(progress, usage, UNLIMITED)
    assert outcome == "error" and message in said and hint in advice


def test_a_full_disk_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not runner.is_full(tmp_path) and not runner.is_full(tmp_path / "missing")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    assert runner.is_full(tmp_path)

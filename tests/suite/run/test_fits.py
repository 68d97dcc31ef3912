"""The fit cache: the name of a fit, one process that makes it, and damaged fits that are never used."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import buzzer
from buzzer import locks, manifest
from buzzer.errors import DataError
from buzzer.models.api.context import Data
from buzzer.suite import registry
from buzzer.suite.budget import UNLIMITED
from buzzer.suite.records import checks, integrity
from buzzer.suite.records.schema import Record
from buzzer.suite.run import fits, limits, reaper, runner
from buzzer.suite.run.executor import is_record_of
from buzzer.suite.run.plan import Run, TaskSelection, fit_run, predict_runs

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
Choose = Callable[..., TaskSelection]
Predict = Callable[..., Record]


def silent(phase: str, elapsed: float, part: object) -> None:
    """Ignore the progress."""


# ---- the name -----------------------------------------------------------------------------------------------------------------

LEARNED = {"fit_fingerprint": "train"}
CLUSTER = {"device": "cuda", "workers": 2}


@pytest.mark.parametrize(
    ("choice", "data_change"),
    [
        ({"do": "be-wrong"}, {}),
        ({"seed": 1}, {}),
        ({"device": "cuda"}, {}),
        (CLUSTER, {}),
        (CLUSTER | {"workers": 3}, {}),
        ({"device": "cuda", "scheduler": "tcp://host:8786"}, {}),
        ({}, {"fingerprint": "other"}),
        ({}, LEARNED),
    ],
)
def test_a_change_of_the_fit_changes_its_name(
    choice: dict[str, Any], data_change: dict[str, str], fake_path: None, data: Data, choose: Choose
) -> None:
    cases = [(fit_run(choose()), data), (fit_run(choose(**choice)), replace(data, **data_change))]
    cases += [(fit_run(choose(device="cuda")), data)] if choice != {"device": "cuda"} else []
    names = [fits.folder(run, files, Path()) for run, files in cases]
    assert len(set(names)) == len(cases)


def test_one_fit_serves_all_engines_and_backends(data: Data, choose: Choose) -> None:
    """Scores of all engines must agree. GPU engines use a fit made on the CPU, unless --device cuda trains it on the GPU."""
    task, names = (
        registry.task("recsys2021"),
        {"engines": ["pandas", "cudf"], "backends": ["torch_eager", "nvforest"]},
    )
    for device, wanted in ((None, {"cpu", "cuda"}), ("cuda", {"cuda"})):
        choice = choose(task=task, device=device, workers=2, repeat=2, precisions=["fp32", "bf16"], **names)
        runs = predict_runs(choice)
        assert {run.device for run in runs} == wanted and len(runs) == 16
        (name,) = {fits.fit_id(run, data) for run in [*runs, fit_run(choice)]}
        assert name.partition("-")[0] == (device or "cpu")


def test_test_files_are_not_part_of_the_name(fake_path: None, data: Data, choose: Choose) -> None:
    small, large = (replace(data, fingerprint=name, **LEARNED) for name in ("small", "large"))
    run = fit_run(choose())
    assert fits.fit_id(run, small) == fits.fit_id(run, large)


def test_weights_count_by_their_contents(tmp_path: Path, fake_path: None, data: Data, choose: Choose) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    names = []
    for text in ("one", "two", "one"):
        (weights / "model").write_text(text)
        names.append(fits.fit_id(fit_run(choose(str(weights))), data))
    assert names[0] == names[2] != names[1]


SOURCES = {
    "__init__.py": "",
    "task.py": "from ours import near\n\ndef fit():\n    import ours.lazy\n",
    "near.py": "from . import beside\nfrom .deeper.down import THING\n",
    "beside.py": "NAME = 'buzzer.models.blend:blend'\n",
    "lazy.py": "from importlib import import_module\nimport_module(f'buzzer.datasets.booking.{1}')\n",
    "deeper/__init__.py": "",
    "deeper/down.py": "from ours import (\n    far as THING,\n)\n",
    "far.py": "",
    "unused.py": "",
}


@pytest.fixture
def ours(importable: Callable[[Mapping[str, str]], Path]) -> Iterator[Path]:
    """A package with a task."""
    yield importable({f"ours/{name}": text for name, text in SOURCES.items()}) / "ours"
    fits.code_hash.cache_clear()


def test_all_that_a_task_imports_is_found(ours: Path) -> None:
    paths = fits.sources("ours.task:TASK")
    names = {str(path.relative_to(ours)) for path in paths.values() if path.is_relative_to(ours)}
    assert names == SOURCES.keys() - {"unused.py"}
    assert {
        "buzzer.models.blend",
        "buzzer.datasets.booking.schema",
        "buzzer.datasets.booking",
    } <= paths.keys()
    assert "ours" not in sys.modules


@pytest.mark.parametrize("name", SOURCES)
def test_an_edited_source_makes_another_fit(name: str, ours: Path) -> None:
    before = fits.code_hash("ours.task:TASK")
    (ours / name).write_text(SOURCES[name] + "# edited\n")
    assert fits.code_hash("ours.task:TASK") == before  # computed once per process
    fits.code_hash.cache_clear()
    assert (fits.code_hash("ours.task:TASK") != before) == (name != "unused.py")


def test_a_source_that_is_not_python_is_reported(ours: Path) -> None:
    (ours / "far.py").write_text("def f(:\n")
    with pytest.raises(DataError, match=r"far\.py, line 1: "):
        fits.sources("ours.task:TASK")
    with pytest.raises(DataError, match="no such module"):
        fits.sources("ours.absent:TASK")


@pytest.mark.parametrize("task", [*registry.tasks()])
def test_a_task_depends_on_models_and_not_on_the_harness(task: str) -> None:
    paths = fits.sources(registry.task(task).entry)
    assert not [name for name in paths if name.startswith("buzzer.suite")]
    shared = {
        "buzzer.models.api.context",
        "buzzer.datasets.files",
        "buzzer.engine.infer.backends.torch_eager",
    }
    assert shared <= paths.keys()
    assert ("buzzer.models.blend" in paths) == (not task.startswith("bert"))


def test_what_python_imports_is_among_the_sources() -> None:
    code = (
        "import sys, buzzer.models.booking.task\n"
        "print(*(n for n, m in sys.modules.items() if n.startswith('buzzer') and getattr(m, '__file__', None)))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(out.stdout.split())
    assert "buzzer.models.booking.features" in imported
    assert imported <= fits.sources("buzzer.models.booking.task:TASK").keys()


@pytest.mark.parametrize(
    ("edited", "changes"),
    [("models/blend.py", True), ("engine/frames/lazy.py", True), ("suite/report/leaderboard.py", False)],
)
def test_an_edited_buzzer_makes_another_fit(
    edited: str, changes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("models", "engine", "datasets", "suite", "buzzer"):
        for source in (ROOT / package).rglob("*.py"):
            copy = tmp_path / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    entry = registry.task("recsys2021").entry
    before = fits.code_hash.__wrapped__(entry)
    places = [str(tmp_path), str(tmp_path / "buzzer")]
    monkeypatch.setattr(buzzer, "__path__", places)
    monkeypatch.setattr(buzzer.__spec__, "submodule_search_locations", places)
    assert fits.code_hash.__wrapped__(entry) == before  # it does not depend on where buzzer is installed
    with (tmp_path / edited).open("a") as file:
        file.write("# edited\n")
    assert (fits.code_hash.__wrapped__(entry) != before) == changes


# ---- records and the gate -----------------------------------------------------------------------------------------------------


def test_records_name_their_fit_and_the_gate_compares_only_equal_fits(
    tmp_path: Path, fake_path: None, data: Data, choose: Choose
) -> None:
    choice = choose()
    fitted = runner.fit(fit_run(choice), data, tmp_path, silent)
    reference, other = predict_runs(choice)
    first = runner.predict(reference, data, tmp_path, tmp_path, (), silent)
    assert fitted is not None
    assert fitted.fit_id == first.fit_id == fits.fit_id(reference, data)
    assert first.fit_id is not None and first.fit_id.startswith("cpu-")
    second = runner.predict(other, data, tmp_path, tmp_path, (first,), silent)
    assert (second.gate.status, second.fit_id) == ("passed", first.fit_id)
    path = tmp_path / "r.json"
    for fit_id in ("cpu-0", None):  # another fit, and no fit, as in older records
        changed = first.model_copy(update={"fit_id": fit_id})
        third = runner.predict(other, data, tmp_path, tmp_path, (changed,), silent)
        assert third.gate.status == "no-reference"
        records = {path: changed, tmp_path / "s.json": second}
        problems = dict(integrity.passes(integrity.Checked(records, {p: [] for p in records}), whole=True))
        assert "other" in problems[tmp_path / "s.json"]
    assert is_record_of(reference, data, first)
    assert not is_record_of(reference, data, first.model_copy(update={"fit_id": None}))


# ---- damage -------------------------------------------------------------------------------------------------------------------


def flip(folder: Path) -> None:
    """Flip one bit; keep the file's size and mtime."""
    path = folder / "model"
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def cut(folder: Path) -> None:
    (folder / "model").write_bytes((folder / "model").read_bytes()[:-1])


def lose(folder: Path) -> None:
    (folder / "model").unlink()


def add(folder: Path) -> None:
    (folder / "deep" / "answers").write_text("kept")


def lose_manifest(folder: Path) -> None:
    (folder / manifest.NAME).unlink()


def cut_manifest(folder: Path) -> None:
    path = folder / manifest.NAME
    path.write_bytes(path.read_bytes()[:-5])


def make_unreadable(folder: Path) -> None:
    """Replace the file with a folder, which root cannot read either."""
    (folder / manifest.NAME).unlink()
    (folder / manifest.NAME).mkdir()


def make_a_file(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    folder.write_text("")


def break_link(folder: Path) -> None:
    (folder / "model").unlink()
    (folder / "model").symlink_to("/nowhere")


DAMAGE = {
    flip: "model has changed contents",
    cut: "model has 5 bytes instead of 6",
    lose: "model is missing",
    add: "deep/answers was added",
    lose_manifest: ".manifest.json cannot be read: No such file or directory",
    cut_manifest: ".manifest.json is damaged",
    make_unreadable: ".manifest.json cannot be read: Is a directory",
    make_a_file: "not a folder",
    break_link: "model has 8 bytes instead of 6",
}


@pytest.fixture
def run(fake_path: None, choose: Choose) -> Run:
    return fit_run(choose())


@pytest.fixture
def fitted(tmp_path: Path, run: Run, data: Data) -> Path:
    """The folder of a finished fit of the fake task."""
    folder = fits.folder(run, data, tmp_path)
    (folder / "deep").mkdir(parents=True)
    (folder / "model").write_text("fitted")
    (folder / "deep" / "table").write_text("12")
    manifest.seal(folder)
    assert manifest.problem(folder) == ""
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_detected(damage: Callable[[Path], None], fitted: Path) -> None:
    damage(fitted)
    assert manifest.problem(fitted) == DAMAGE[damage]


@pytest.mark.parametrize("damage", [flip, make_a_file])
def test_a_damaged_fit_is_made_again(
    damage: Callable[[Path], None],
    tmp_path: Path,
    fitted: Path,
    run: Run,
    data: Data,
    choose: Choose,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert runner.fit(run, data, tmp_path, silent) is None
    damage(fitted)
    refused = runner.predict(predict_runs(choose())[0], data, tmp_path, tmp_path, (), silent)
    assert (refused.outcome, refused.scores, refused.enforcement) == ("error", {}, "none")
    assert DAMAGE[damage] in refused.message
    refitted = runner.fit(run, data, tmp_path, silent)
    assert refitted is not None and refitted.outcome == "ok"
    assert capfd.readouterr().err == f"{fitted}: {DAMAGE[damage]}; it is made again\n"
    assert (manifest.problem(fitted), (fitted / "model").read_text()) == ("", "fitted")
    assert runner.fit(run, data, tmp_path, silent) is None


def test_a_run_that_changes_the_fit_is_an_error(predict: Predict, tmp_path: Path) -> None:
    r = predict("write-to-fit")
    assert (r.outcome, r.message) == ("error", "the run changed the fit: answers")
    assert (r.scores, r.gate.status) == ({}, "unscored")
    assert checks.verdict(r) == []


@pytest.mark.parametrize(
    ("name", "way"),
    [("model", "link"), ("model", "write"), (manifest.NAME, "link"), (manifest.NAME, "write")],
)
def test_a_hard_link_to_a_fit_is_no_change(fitted: Path, tmp_path: Path, name: str, way: str) -> None:
    file, before, sealed = fitted / name, manifest.state(fitted), (fitted / manifest.NAME).read_bytes()
    time.sleep(0.02)  # longer than a tick of the file system's clock
    if way == "link":
        os.link(file, tmp_path / "link")
    else:  # other contents of the same size, with the earlier mtime
        stat = file.stat()
        file.write_bytes(file.read_bytes().swapcase())
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert manifest.changes(before, manifest.state(fitted)) == [name]
    assert manifest.rewritten(fitted, before, sealed) == ([] if way == "link" else [name])


def test_a_fit_that_cannot_be_saved_is_an_error(
    tmp_path: Path, run: Run, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest, "seal", full)
    r = runner.fit(run, data, tmp_path, silent)
    assert r is not None
    assert (r.outcome, r.message.partition(": ")[2]) == ("error", "No space left on device")
    assert not fits.folder(run, data, tmp_path).exists()


# ---- two processes ------------------------------------------------------------------------------------------------------------


def start(command: list[str], **pipes: Any) -> subprocess.Popen[str]:
    where = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"}
    return subprocess.Popen([sys.executable, *command], env=where, text=True, **pipes)


def test_two_processes_that_need_one_fit_make_it_once(tmp_path: Path, run: Run, data: Data) -> None:
    """Both wait for the lock that this process holds, so that they need the fit at the same time. Each waits for this process or for the other."""
    folder = fits.folder(run, data, tmp_path)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with locks.held(runner.sibling(folder, "lock"), never):
        both = [start([str(HERE / "fits_harness.py"), str(tmp_path)], **pipes) for _ in "ab"]
        owners = [re.findall(r"waiting for process (\d+) on ", process.stderr.readline()) for process in both]
    assert {int(pid) for (pid,) in owners} in ({os.getpid(), process.pid} for process in both)
    assert sorted(process.communicate()[0].strip() for process in both) == ["cached", "ok"]
    assert manifest.problem(folder) == ""
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}


def never(message: str) -> None:
    raise AssertionError(message)


def test_a_dead_owner_does_not_block(tmp_path: Path) -> None:
    code = "import sys, time\nfrom pathlib import Path\nfrom buzzer import locks\n"
    code += "with locks.held(Path(sys.argv[1]), print):\n    print('held', flush=True)\n    time.sleep(60)\n"
    owner = start(["-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    assert owner.stdout is not None and owner.stdout.readline() == "held\n"
    messages = []

    def kill_owner(message: str) -> None:
        messages.append(message)
        owner.send_signal(signal.SIGKILL)

    with owner, locks.held(tmp_path / "lock", kill_owner):
        assert f"process {owner.pid} on" in messages[0]
        assert f"process {os.getpid()} on" in locks.owner(tmp_path / "lock")
    assert locks.owner(tmp_path / "lock") == "another process"


def test_a_new_owner_has_time_to_write_its_name(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    writer = threading.Timer(locks.POLL_S / 4, lock.write_text, ["process 7"])
    writer.start()
    assert locks.owner(lock) == "process 7"
    writer.join()


def test_an_exception_ends_the_waiting(tmp_path: Path) -> None:
    def press(message: str) -> None:
        raise KeyboardInterrupt

    with (
        locks.held(tmp_path / "lock", never),
        pytest.raises(KeyboardInterrupt),
        locks.held(tmp_path / "lock", press),
    ):
        pass
    with locks.held(tmp_path / "lock", never):
        pass


def test_a_lock_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot lock"), locks.held(tmp_path / "file" / "lock", never):
        pass


def test_runs_are_measured_one_after_the_other(tmp_path: Path) -> None:
    """This process holds the lock of another run, and releases it once this run has reported that it waits."""
    phases = list[str]()
    with ExitStack() as other:

        def on_progress(phase: str, elapsed: float, part: object) -> None:
            phases.append(phase)
            other.close()

        other.enter_context(runner.exclusive(tmp_path, silent))
        with runner.exclusive(tmp_path, on_progress):
            assert phases[0].startswith(f"waiting for process {os.getpid()} on")
    assert len(phases) == 1


def test_a_run_that_is_stopped_while_it_waits_has_a_record(
    tmp_path: Path, fitted: Path, run: Run, data: Data, choose: Choose
) -> None:
    def press(phase: str, elapsed: float, part: object) -> None:
        raise KeyboardInterrupt

    (timed, _), other = predict_runs(choose()), replace(run, seed=1)
    stopped = []
    with runner.exclusive(tmp_path, silent):
        stopped.append(runner.predict(timed, data, tmp_path, tmp_path, (), press))
        stopped.append(runner.fit(other, data, tmp_path, press))
        stopped.append(runner.bench(timed, data, tmp_path, tmp_path, tmp_path, press))
    with locks.held(runner.sibling(fits.folder(other, data, tmp_path), "lock"), never):
        stopped.append(runner.fit(other, data, tmp_path, press))
    for r in stopped:
        assert r is not None and runner.interrupted(r)
        assert (r.outcome, r.enforcement, r.wall_s) == ("error", "none", 0.0)


def test_a_run_within_a_run_does_not_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reaper.VARIABLE in limits.environment_of(UNLIMITED)  # every run has it
    with runner.exclusive(tmp_path, silent):
        monkeypatch.setenv(reaper.VARIABLE, "of the run around it")
        with runner.exclusive(tmp_path, lambda phase, elapsed, part: never(phase)):
            pass


def test_a_timed_run_and_a_fit_are_measured_alone(
    tmp_path: Path, run: Run, data: Data, choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = list[Path]()
    take = locks.held
    monkeypatch.setattr(locks, "held", lambda path, on_wait: held.append(path) or take(path, on_wait))
    runner.fit(run, data, tmp_path, silent)
    runner.predict(predict_runs(choose())[0], data, tmp_path, tmp_path, (), silent)
    assert [path.parent.name for path in held] == [tmp_path.name, "fits", tmp_path.name]

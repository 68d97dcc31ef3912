"""The GPU suite on small test steps, and its real steps against the command line."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
import pytest

from buzzer.suite.gpu import install, rehearsal, results, suite
from buzzer.suite.gpu import kit as gpu_kit
from buzzer.suite.gpu import steps as gpu_steps
from buzzer.suite.gpu.results import PACK, StepResult
from buzzer.suite.gpu.steps import Step
from buzzer.suite.gpu.suite import run_steps


def python(name: str, code: str, limit_s: float = 20) -> Step:
    return Step(name, ("-c", code), limit_s)


def record(outcome: str) -> str:
    """Code that writes a file like a record, with this outcome, and a submission below the folder in its first argument."""
    return (
        "import pathlib, json, sys; folder = pathlib.Path(sys.argv[1]); submission = folder / 'files' / 'aaaaaaaa';"
        "folder /= 'task/machine'; folder.mkdir(parents=True, exist_ok=True);"
        "submission.mkdir(parents=True, exist_ok=True); (submission / 'submission.json').write_text('[]');"
        f"(folder / (sys.argv[2:] or ['r.json'])[0]).write_text(json.dumps({{'outcome': {outcome!r}, 'job': 'fit', 'message': 'a cause'}}))"
    )


def go(tmp_path: Path, *steps: Step, seconds: float = 60) -> list[StepResult]:
    (tmp_path / "out").mkdir(exist_ok=True)
    return run_steps(steps, tmp_path / "work", tmp_path / "out", seconds, os.environ)


def members(out: Path) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO((out / PACK).read_bytes())) as tar:
        return {m.name: tar.extractfile(m).read().decode() for m in tar.getmembers()}  # type: ignore[union-attr]


def test_a_step_that_fails_or_hangs_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "GRACE_S", 0.3)
    monkeypatch.setattr(suite, "LEAST_S", 0.0)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    ended = go(
        tmp_path,
        python("breaks", "raise RuntimeError('no luck')"),
        python("hangs", deaf, limit_s=1),
        python("no device", "import sys; print('error: no CUDA device here'); sys.exit(2)"),
        python("no such verb", "import sys; print('Usage: x'); print('Error: No such command'); sys.exit(2)"),
        Step("refuses", ("-c", record("unsupported"), "{records}"), 20),
        Step("measures", ("-c", record("ok"), "{records}"), 20),
        python("all skipped", "print('== 3 skipped in 0.1s ==')"),
    )
    assert [(step.name, step.status) for step in ended] == [
        ("breaks", "failed"),
        ("hangs", "timeout"),
        ("no device", "unsupported"),
        ("no such verb", "failed"),
        ("refuses", "unsupported"),
        ("measures", "ok"),
        ("all skipped", "unsupported"),
    ]
    assert ended[0].message == "RuntimeError: no luck"
    assert suite.status_of(None, {}, ["started", "deaf", ""]) == (
        "timeout",
        "deaf",
    )  # a loaded machine may not come to print it
    assert ended[2].message == "error: no CUDA device here"
    assert ended[4].message == "1 unsupported: fit: a cause"
    assert ended[5].records == {"ok": 1}
    assert ended[5].message == "1 ok"


def test_processes_that_a_step_started_end_with_it(tmp_path: Path) -> None:
    starts = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid, flush=True)"
    (ended,) = go(tmp_path, python("parent", starts))
    pid, deadline = int(ended.message), time.monotonic() + 60
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(pid)


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_the_pack_is_complete_after_every_step(tmp_path: Path) -> None:
    out = tmp_path / "out"
    look = f"import pathlib; print(sorted(p.name for p in pathlib.Path({str(out)!r}).iterdir()))"
    ended = go(
        tmp_path, Step("first, it", ("-c", record("ok"), "{records}"), 20), python("second", look), seconds=60
    )
    assert PACK in ended[1].message
    assert "summary.md" in ended[1].message
    packed = members(out)
    assert packed.keys() == {
        *(
            "summary.json",
            "summary.md",
            "logs/first-it.log",
            "logs/second.log",
            "records/first-it/task/machine/r.json",
        )
    }
    assert [step["status"] for step in json.loads(packed["summary.json"])["steps"]] == ["ok", "ok"]
    assert "| second | ok |" in packed["summary.md"]


def test_a_long_log_is_cut(tmp_path: Path) -> None:
    go(tmp_path, python("talks", "print('x' * 10 ** 6); print('the end')"))
    log = members(tmp_path / "out")["logs/talks.log"]
    assert len(log) == results.LOG_BYTES
    assert log.endswith("the end\n")


def test_without_a_gpu_only_steps_that_need_none_are_run(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    needs = python("needs one", f"open({str(tmp_path / 'ran')!r}, 'w')")
    other, reason = Step("other", ("-c", "print('facts')"), 20, gpu=False), "no NVIDIA driver"
    ended = run_steps([needs, other], tmp_path / "work", tmp_path / "out", 60, os.environ, no_gpu=reason)
    assert [(step.status, step.message) for step in ended] == [("unsupported", reason), ("ok", "facts")]
    assert not (tmp_path / "ran").exists()
    assert (
        f"| needs one | unsupported | 0.0 | 0.0 | {reason} |" in (tmp_path / "out" / "summary.md").read_text()
    )
    assert members(tmp_path / "out").keys() == {"summary.json", "summary.md", "logs/other.log"}


@pytest.mark.parametrize(
    ("problem", "flags", "status", "code"),
    [
        ("no NVIDIA driver", (), "unsupported", suite.NO_GPU),
        ("no NVIDIA driver", ("--anyway",), "failed", 1),
        ("", (), "failed", 1),
    ],
)
def test_the_exit_code_distinguishes_a_missing_gpu_from_a_failure(
    problem: str,
    flags: tuple[str, ...],
    status: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(suite, "cuda_problem", lambda: problem)
    monkeypatch.setattr(gpu_steps, "STEPS", (python("breaks", "raise SystemExit(3)"),))
    out = str(tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["gpu_suite", "--out", out, "--kit", str(tmp_path / "none"), *flags])
    assert suite.main() == code
    (step,) = json.loads((tmp_path / "out" / "summary.json").read_text())["steps"]
    assert step["status"] == status
    assert f"| breaks | {status} |" in capsys.readouterr().out


def test_no_step_begins_when_the_time_is_up(tmp_path: Path) -> None:
    ended = go(tmp_path, python("late", "print(1)"), seconds=1)
    assert [(step.status, step.message) for step in ended] == [("skipped", "no time left")]
    assert "skipped" in (tmp_path / "out" / "summary.md").read_text()


def test_a_kit_is_unpacked_and_a_broken_one_reported(tmp_path: Path) -> None:
    piece = tmp_path / "kit" / "p01"
    piece.mkdir(parents=True)
    (piece / "unpack.py").write_text(
        "import sys; print('/a/site' if sys.argv[1] == '--site' else 'unpacked')"
    )
    log = tmp_path / "work" / "logs" / "kit.log"
    folders, (ended,) = install.install(tmp_path / "kit", log)
    assert (folders, ended.status) == (["/a/site"], "ok")
    assert log.read_text() == "unpacked\n"
    path = install.environment(folders)["PYTHONPATH"].split(os.pathsep)
    assert path[:2] == [str(suite.ROOT), "/a/site"]
    (piece / "unpack.py").write_text("raise SystemExit('piece is damaged')")
    folders, (ended,) = install.install(tmp_path / "kit", log)
    assert (folders, ended.status) == ([], "failed")
    assert "unpack.py ended with 1" in ended.message
    assert install.install(tmp_path / "none", log) == ([], [])


def test_data_and_fits_of_a_kit_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, kit = tmp_path / "cache", tmp_path / "kit"
    (kit / "fits" / "a").mkdir(parents=True)
    (kit / "fits" / "a" / "model").write_text("trained")
    with tarfile.open(kit / install.SEED_FILE, "w:xz") as tar:
        tar.add(kit / "fits", arcname="fits")
    monkeypatch.setenv("BUZZER_CACHE", str(cache))
    _, (ended,) = install.install(kit, tmp_path / "work" / "kit.log")
    assert (ended.status, (cache / "fits" / "a" / "model").read_text()) == ("ok", "trained")
    (cache / "compiled" / "cupy").mkdir(parents=True)
    (cache / "compiled" / "cupy" / "kernel").write_text("compiled")
    results.pack_caches(kit / results.CACHES, cache)
    shutil.rmtree(cache)
    install.install(kit, tmp_path / "work" / "kit.log")
    assert (cache / "compiled" / "cupy" / "kernel").read_text() == "compiled"
    (kit / install.SEED_FILE).write_bytes(b"not an archive")
    _, (ended,) = install.install(kit, tmp_path / "work" / "kit.log")
    assert ended.status == "failed"
    assert install.SEED_FILE in ended.message


def test_steps_that_share_a_folder_count_their_own_records(tmp_path: Path) -> None:
    steps = [
        Step(name, ("-c", record("ok"), "{records}", f"{name}.json"), 20, shares="both")
        for name in ("one", "two")
    ]
    assert [ended.records for ended in go(tmp_path, *steps)] == [{"ok": 1}, {"ok": 1}]
    assert {f"records/both/task/machine/{name}.json" for name in ("one", "two")} <= members(
        tmp_path / "out"
    ).keys()


def test_a_steps_placeholders_are_replaced_and_its_cpu_time_measured(tmp_path: Path) -> None:
    burn = "import sys, time; print(*sys.argv[1:])\nwhile time.process_time() < 0.3: pass"
    places = Step("burns", ("-c", burn, "{work}/a", "{test_scale}"), 20)
    missing = Step("profiled", ("-c", ""), 20, through=("no-such-profiler", "-x"))
    through = Step("through", ("-c", "print('reached')"), 20, through=("env", "-i"))
    (tmp_path / "out").mkdir()
    burns, profiled, reached = run_steps(
        [places, missing, through], tmp_path / "work", tmp_path / "out", 60, os.environ, test_scale=0.25
    )
    assert burns.message == f"{tmp_path / 'work'}/a 0.25"
    assert burns.cpu_s >= 0.3
    assert (profiled.status, profiled.message) == ("unsupported", "no-such-profiler is not on the PATH")
    assert (reached.status, reached.message) == ("ok", "reached")


# ---- the real steps, and the calls of docs/gpu.md -----------------------------------------------------------------------------


def test_only_keeps_the_order_given() -> None:
    def names(only: str) -> list[str]:
        return [step.name for step in gpu_steps.chosen(only)]

    assert names("recsys2021 small, env") == ["recsys2021 small", "env"]
    assert names("frames") == [step.name for step in gpu_steps.FRAMES]
    assert names("trees,frames")[0] == "trees"
    assert len(names("trees,frames")) == len(gpu_steps.FRAMES)
    assert names("") == [step.name for step in gpu_steps.STEPS]
    assert names("no such step") == []
    assert names("huge on one,env") == ["recsys2021 huge data", "recsys2021 huge on one core", "env"]
    assert names("frames").count("recsys2021 large data") == 1


def test_steps_name_only_existing_things() -> None:
    """Every task, option and folder that a step names exists."""
    from typer.main import get_command

    from buzzer.suite import registry
    from buzzer.suite.cli import app

    verbs = get_command(app).commands  # type: ignore[attr-defined]
    for step in gpu_steps.STEPS:
        match [suite.fill(part, {"{test_scale}": "0.1"}) for part in step.command]:
            case ["-m", "buzzer", "data", verb, *rest]:
                assert verbs["data"].commands[verb].make_context(verb, rest, resilient_parsing=False)
            case ["-m", "buzzer", verb, *rest] if verb in verbs:
                assert verbs[verb].make_context(verb, list(rest), resilient_parsing=False)
                if verb == "run":
                    assert rest[0] in registry.tasks()
            case ["-m", "pytest", *rest]:
                folders = [part for part in rest if part.startswith("tests/")]
                assert folders
                assert all((suite.ROOT / folder).exists() for folder in folders)
    assert len({step.name for step in gpu_steps.STEPS}) == len(gpu_steps.STEPS)


def test_the_kernels_new_paths_have_tests() -> None:
    places = [suite.ROOT / place for place in gpu_steps.KERNEL_TESTS]
    files = [file for place in places for file in ([place] if place.is_file() else place.glob("test_*.py"))]
    names = re.findall(r"^def (test_\w+)", "\n".join(file.read_text() for file in files), re.MULTILINE)
    for part in gpu_steps.NEW_PATHS.split(" or "):
        assert [name for name in names if part in name], part


MINUTES = {"bert": 10.1, "frames": 8.5}  # of a group's steps, as in docs/gpu.md


def test_a_failure_is_printed_when_it_occurs(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import os\n\ndef test_bad() -> None:\n    assert 1 + 1 == 3\n\ndef test_cut_off() -> None:\n    os._exit(1)\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "buzzer.suite.gpu.failures",
    ]
    ended = subprocess.run(
        [*command, "test_it.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "failed in call: test_it.py::test_bad" in ended.stdout
    assert "assert (1 + 1) == 3" in ended.stdout
    assert "short test summary" not in ended.stdout


def test_steps_fit_their_minutes() -> None:
    """A step's measured CPU time is below its expected time, which is below its limit. The steps of a group fit its minutes."""
    for group, minutes in MINUTES.items():
        steps = gpu_steps.chosen(group)
        assert sum(step.expected_s for step in steps) <= 60 * minutes - suite.GRACE_S
        for step in steps:
            assert step.cpu_s / step.cores < step.expected_s <= step.limit_s / 1.2, step.name
    shown = suite.table(gpu_steps.FRAMES)
    assert len(shown) == len(gpu_steps.FRAMES) + 1
    assert shown[1].startswith("libraries")


CALLS = gpu_kit.calls()
MOST_CHARACTERS = 2000  # of a call's command


@pytest.mark.parametrize("name", CALLS)
def test_a_call_can_be_made(name: str) -> None:
    """It is short enough and valid shell, uploads only what `make gpukit` makes, and has time for all steps that it names."""
    call = CALLS[name]
    assert len(call.command) <= MOST_CHARACTERS
    subprocess.run(["bash", "-n", "-c", call.command], check=True)
    assert 0 < len(call.takes) <= 8
    assert all(path.startswith(".gpukit/") for path in call.takes)
    if match := rehearsal.SUITE.search(call.command):
        words = shlex.split(match[0])[2:]
        options = suite.arguments().parse_args([os.path.expandvars(word) for word in words])
        steps = gpu_steps.chosen(options.only)
        assert steps
        assert sum(step.expected_s for step in steps) <= 60 * options.minutes - suite.GRACE_S
        assert 60 * options.minutes <= call.limit_s - 10  # the kit is unpacked within the minutes


def test_the_calls_of_a_group_hold_all_its_steps() -> None:
    named = {
        "bert": [step for name in ("bert-1", "bert-2") for step in steps_of(name)],
        "frames": steps_of("frames"),
    }
    for group, steps in named.items():
        assert sorted(s.name for s in steps) == sorted(s.name for s in gpu_steps.chosen(group))


def steps_of(call: str) -> list[Step]:
    match = rehearsal.SUITE.search(CALLS[call].command)
    assert match
    return gpu_steps.chosen(suite.arguments().parse_args(shlex.split(match[0])[2:]).only)


def test_uploads_stay_small(tmp_path: Path) -> None:
    """A piece (46 MiB, see the Makefile) and the tree must fit into one upload."""
    subprocess.run(["git", "-C", str(suite.ROOT), "rev-parse"], check=True)
    assert gpu_kit.size(gpu_kit.tree()) < gpu_kit.MOST_BYTES - (46 << 20)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("folder")
    assert gpu_kit.size([tmp_path / "folder"]) == 5
    assert gpu_kit.size([tmp_path / "link"]) == len("folder")


def test_sizes_tell_what_is_missing_or_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "piece").write_bytes(b"1" * 100)
    calls = {name: gpu_kit.Call(name, (name,), 10, "true") for name in ("piece", "absent")}
    monkeypatch.setattr(gpu_kit, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_kit, "tree", list)
    monkeypatch.setattr(gpu_kit, "calls", lambda: {"piece": calls["piece"]})
    assert gpu_kit.sizes() == 0
    monkeypatch.setattr(gpu_kit, "MOST_BYTES", 99)
    assert gpu_kit.sizes() == 1
    assert "more than" in capsys.readouterr().out
    monkeypatch.setattr(gpu_kit, "calls", lambda: {"absent": calls["absent"]})
    assert gpu_kit.sizes() == 1
    assert "missing: absent" in capsys.readouterr().out


def test_data_and_fits_are_packed_once_and_old_fits_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, target = tmp_path / "cache", tmp_path / "seed.tar.xz"

    def make(task: str, options: tuple[str, ...], cache: Path) -> tuple[Path, Path]:
        data, fit = cache / "data" / task, cache / "fits" / f"{task}-{version}"
        for folder in (data, fit):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "file").write_text(task)
        return data, fit

    monkeypatch.setattr(gpu_kit, "make", make)
    for version in ("1", "2"):
        gpu_kit.seed(cache, target)
        assert gpu_kit.packed_names(tmp_path / results.CACHES) == set()
        assert gpu_kit.packed_names(target) == {
            name for task in gpu_steps.SEED for name in (f"data/{task}", f"fits/{task}-{version}")
        }
    before = target.stat().st_mtime_ns
    gpu_kit.seed(cache, target)
    assert target.stat().st_mtime_ns == before
    assert not list(cache.glob("fits/*-1"))


def test_a_rehearsal_stages_exactly_the_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "repository"
    for name in ("kept.py", "ignored.txt", ".gpukit/p01/piece", ".gpukit/p02/piece"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("12345")
    (root / ".gitignore").write_text(".gpukit/\nignored.txt\n")
    subprocess.run(["git", "-C", str(root), "init", "-q"], check=True)
    monkeypatch.setattr(rehearsal, "ROOT", root)
    monkeypatch.setattr(rehearsal, "tree", lambda: gpu_kit.tree(root))
    call = gpu_kit.Call("p", (".gpukit/p01",), 10, "ls -A; echo here > $OUT/found; env > env; exit 3")
    sent = rehearsal.stage(call, tmp_path / "machine" / "tree")
    assert sent == 5 + len(".gpukit/\nignored.txt\n") + 5
    monkeypatch.setenv("PYTHONPATH", "/of/this/machine")
    result = rehearsal.run(call, tmp_path / "machine", Path(sys.executable), [])
    assert (result.code, (result.out / "found").read_text()) == (3, "here\n")
    there = sorted(
        str(p.relative_to(tmp_path / "machine" / "tree")) for p in (tmp_path / "machine" / "tree").rglob("*")
    )
    assert there == [".gitignore", ".gpukit", ".gpukit/p01", ".gpukit/p01/piece", "env", "kept.py"]
    environment = (tmp_path / "machine" / "tree" / "env").read_text()
    assert "PYTHONPATH" not in environment
    assert f"HOME={tmp_path / 'machine' / 'home'}" in environment


@pytest.mark.parametrize(
    ("status", "message", "records", "good"),
    [
        ("ok", "2 passed", {}, True),
        ("ok", "1 ok, 1 unsupported: cudf: no driver", {"ok": 1, "unsupported": 1}, True),
        ("ok", "1 ok, 1 unsupported: cudf: the package is missing", {"ok": 1, "unsupported": 1}, False),
        ("unsupported", "9 skipped in 1.0s", {}, True),
        ("unsupported", "error: no such library", {}, False),
        ("ok", "1 ok, 1 error: polars: it broke", {"ok": 1, "error": 1}, False),
        ("timeout", "no driver", {}, False),
    ],
)
def test_a_rehearsal_reports_unexpected_endings(
    status: str, message: str, records: dict[str, int], good: bool
) -> None:
    step = StepResult("a", status, message=message, records=records)
    assert rehearsal.problems([step], "no driver") == ([] if good else [f"a: {status}: {message}"])


def test_the_gpu_profile_tries_few_examples_and_does_not_shrink() -> None:
    import hypothesis

    profile = hypothesis.settings.get_profile("gpu")
    assert profile.max_examples == 5
    assert hypothesis.Phase.shrink not in profile.phases
    assert hypothesis.Phase.generate in profile.phases


def test_the_suite_starts_without_any_package() -> None:
    """On a new machine the suite runs before the kit is installed."""
    command = [sys.executable, "-I", "-S", "-c"]
    code = f"import sys; sys.path.insert(0, {str(suite.ROOT)!r}); from buzzer.suite.gpu import suite; suite.arguments()"
    subprocess.run([*command, code], check=True, cwd="/")

"""The GPU suite's machinery on stand-in steps, and its real steps against the command line."""

import io
import json
import os
import sys
import tarfile
import time
from pathlib import Path

import pytest

from buzzer.suite import gpu_suite
from buzzer.suite.gpu_suite import PACK, Ended, Step, run_steps


def python(name: str, code: str, limit_s: float = 20) -> Step:
    return Step(name, ("-c", code), limit_s)


def record(outcome: str) -> str:
    """Code that writes a record-like file of one outcome into the folder it is told."""
    return (
        "import pathlib, json, sys; folder = pathlib.Path(sys.argv[1]); folder.mkdir(parents=True);"
        f"(folder / 'r.json').write_text(json.dumps({{'outcome': {outcome!r}, 'job': 'fit', 'message': 'a cause'}}))"
    )


def go(tmp_path: Path, *steps: Step, seconds: float = 60) -> list[Ended]:
    (tmp_path / "out").mkdir(exist_ok=True)
    return run_steps(steps, tmp_path / "work", tmp_path / "out", seconds, os.environ)


def members(out: Path) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO((out / PACK).read_bytes())) as tar:
        return {m.name: tar.extractfile(m).read().decode() for m in tar.getmembers()}  # type: ignore[union-attr]


def test_a_step_that_fails_or_hangs_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_suite, "GRACE_S", 0.3)
    monkeypatch.setattr(gpu_suite, "LEAST_S", 0.0)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    began = time.monotonic()
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
    assert time.monotonic() - began < 30
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
    assert ended[1].message == "deaf"
    assert ended[2].message == "error: no CUDA device here"
    assert ended[4].message == "1 unsupported: fit: a cause"
    assert ended[5].records == {"ok": 1}
    assert ended[5].message == "1 ok"


def test_what_a_step_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_suite, "GRACE_S", 0.2)
    monkeypatch.setattr(gpu_suite, "LEAST_S", 0.0)
    starts = (
        "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    )
    (ended,) = go(tmp_path, python("parent", starts, limit_s=1))
    state = Path("/proc", ended.message, "stat")
    assert not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_the_pack_is_whole_after_every_step(tmp_path: Path) -> None:
    out = tmp_path / "out"
    look = f"import pathlib; print(sorted(p.name for p in pathlib.Path({str(out)!r}).iterdir()))"
    ended = go(
        tmp_path, Step("first, it", ("-c", record("ok"), "{records}"), 20), python("second", look), seconds=60
    )
    assert PACK in ended[1].message
    assert "summary.md" in ended[1].message
    packed = members(out)
    assert packed.keys() == {
        *("summary.json", "summary.md", "logs/first-it.log", "logs/second.log", "records/first-it/r.json")
    }
    assert [step["status"] for step in json.loads(packed["summary.json"])["steps"]] == ["ok", "ok"]
    assert "| second | ok |" in packed["summary.md"]


def test_a_long_log_is_cut(tmp_path: Path) -> None:
    go(tmp_path, python("talks", "print('x' * 10 ** 6); print('the end')"))
    log = members(tmp_path / "out")["logs/talks.log"]
    assert len(log) == gpu_suite.LOG_BYTES
    assert log.endswith("the end\n")


def test_without_a_gpu_only_what_needs_none_is_run(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    needs = python("needs one", f"open({str(tmp_path / 'ran')!r}, 'w')")
    told, reason = Step("told", ("-c", "print('facts')"), 20, gpu=False), "no NVIDIA driver"
    ended = run_steps([needs, told], tmp_path / "work", tmp_path / "out", 60, os.environ, no_gpu=reason)
    assert [(step.status, step.message) for step in ended] == [("unsupported", reason), ("ok", "facts")]
    assert not (tmp_path / "ran").exists()
    assert f"| needs one | unsupported | 0.0 | {reason} |" in (tmp_path / "out" / "summary.md").read_text()
    assert members(tmp_path / "out").keys() == {"summary.json", "summary.md", "logs/told.log"}


@pytest.mark.parametrize(
    ("problem", "flags", "status", "code"),
    [
        ("no NVIDIA driver", (), "unsupported", gpu_suite.UNABLE),
        ("no NVIDIA driver", ("--anyway",), "failed", 1),
        ("", (), "failed", 1),
    ],
)
def test_the_exit_code_tells_what_lacks_from_what_fails(
    problem: str,
    flags: tuple[str, ...],
    status: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(gpu_suite, "cuda_problem", lambda: problem)
    monkeypatch.setattr(gpu_suite, "STEPS", (python("breaks", "raise SystemExit(3)"),))
    out = str(tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["gpu_suite", "--out", out, "--kit", str(tmp_path / "none"), *flags])
    assert gpu_suite.main() == code
    (step,) = json.loads((tmp_path / "out" / "summary.json").read_text())["steps"]
    assert step["status"] == status
    assert f"| breaks | {status} |" in capsys.readouterr().out


def test_no_step_begins_when_the_time_is_up(tmp_path: Path) -> None:
    ended = go(tmp_path, python("late", "print(1)"), seconds=1)
    assert [(step.status, step.message) for step in ended] == [("skipped", "no time left")]
    assert "skipped" in (tmp_path / "out" / "summary.md").read_text()


def test_a_kit_is_unpacked_and_a_broken_one_told(tmp_path: Path) -> None:
    piece = tmp_path / "kit" / "p01"
    piece.mkdir(parents=True)
    (piece / "unpack.py").write_text(
        "import sys; print('/a/site' if sys.argv[1] == '--site' else 'unpacked')"
    )
    log = tmp_path / "work" / "logs" / "kit.log"
    folders, (ended,) = gpu_suite.open_kit(tmp_path / "kit", log)
    assert (folders, ended.status) == (["/a/site"], "ok")
    assert log.read_text() == "unpacked\n"
    path = gpu_suite.environment_of(folders)["PYTHONPATH"].split(os.pathsep)
    assert path[:2] == [str(gpu_suite.ROOT), "/a/site"]
    (piece / "unpack.py").write_text("raise SystemExit('piece is damaged')")
    folders, (ended,) = gpu_suite.open_kit(tmp_path / "kit", log)
    assert (folders, ended.status) == ([], "failed")
    assert "unpack.py ended with 1" in ended.message
    assert gpu_suite.open_kit(tmp_path / "none", log) == ([], [])


def test_steps_name_what_there_is() -> None:
    """Every task, option and folder that a step names is there; the largest comes last."""
    from typer.main import get_command

    from buzzer.suite import registry
    from buzzer.suite.cli import app

    verbs = get_command(app).commands  # type: ignore[attr-defined]
    for step in gpu_suite.STEPS:
        match step.command:
            case ("-m", "buzzer", verb, *rest) if verb in verbs:
                assert verbs[verb].make_context(verb, list(rest), resilient_parsing=False)
                if verb == "run":
                    assert rest[0] in registry.tasks()
            case ("-m", "pytest", *rest):
                folders = [part for part in rest if part.startswith("tests/")]
                assert folders
                assert all((gpu_suite.ROOT / folder).is_dir() for folder in folders)
    assert len({step.name for step in gpu_suite.STEPS}) == len(gpu_suite.STEPS)
    assert max(gpu_suite.STEPS, key=lambda step: step.limit_s) == gpu_suite.STEPS[-1]


def test_it_needs_nothing_installed() -> None:
    """On a bare machine the suite itself runs before the kit is there."""
    import subprocess

    command = [sys.executable, "-I", "-S", "-c"]
    code = f"import sys; sys.path.insert(0, {str(gpu_suite.ROOT)!r}); from buzzer.suite import gpu_suite; gpu_suite.arguments()"
    subprocess.run([*command, code], check=True, cwd="/")

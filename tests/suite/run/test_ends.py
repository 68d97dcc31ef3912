"""How the command line ends after a signal, without a reader, on a full disk, and if a folder cannot be written."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from buzzer.datasets import booking
from buzzer.datasets.files import new_folder
from buzzer.datasets.workers import in_order
from buzzer.errors import DataError
from buzzer.models.api.context import Data
from buzzer.suite import cli
from buzzer.suite.cli import run as run_verb
from buzzer.suite.cli import streams
from buzzer.suite.cli.signals import ProgressDisplay
from buzzer.suite.records import record
from buzzer.suite.records.schema import Record
from buzzer.suite.run import runner
from buzzer.suite.run.executor import Executor, Step
from buzzer.suite.run.plan import TaskSelection, predict_runs
from buzzer.suite.run.task_runs import TaskWorkload

Make = Callable[..., Record]
Main = Callable[..., int]
SIGNALS = {"SIGTERM": 143, "SIGHUP": 129, "SIGINT": 130}


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Main]:
    """Runs the command line in this process. Returns its exit code."""
    handlers = {number: signal.getsignal(number) for number in map(signal.Signals.__getitem__, SIGNALS)}
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # the tests may run under nohup
    monkeypatch.setenv("BUZZER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["buzzer", *arguments])
        monkeypatch.setattr(sys, "stdout", sys.stdout)  # restored after the test
        monkeypatch.setattr(sys, "stderr", sys.stderr)
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(str(end.value.code or 0))

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def send_signal(number: str) -> None:
    os.kill(os.getpid(), signal.Signals[number])
    time.sleep(0)  # Python handles signals between two instructions


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("verb", ["generate", "convert"])
def test_a_signal_leaves_no_half_made_folder(
    main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str, number: str
) -> None:
    def work(*arguments: Any, **_: Any) -> None:
        out, progress = [x for x in arguments if isinstance(x, Path)][-1], arguments[-1]
        with new_folder(out) as aside:
            (aside / "part").write_text("half")
            send_signal(number)
            send_signal(number)  # as an impatient user does
            progress(0.5, "still working")
            raise AssertionError("not stopped")

    monkeypatch.setattr(booking, verb, work)
    task = ["data", verb, "booking", *(["."] if verb == "convert" else []), "--out", "made"]
    assert main(*task) == SIGNALS[number]
    assert capsys.readouterr().err == f"interrupted by {number}\n"
    assert not list(Path().glob("*made*")) and not list(Path().glob(".*"))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_leaves_no_half_written_report(
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make_record: Make,
    number: str,
) -> None:
    record.write(make_record(), Path("records"))
    replace = Path.replace

    def strike(path: Path, target: Path) -> Path:
        send_signal(number)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", strike)
    assert main("report", "records", "--out", "board.md") == SIGNALS[number]
    assert capsys.readouterr().err == f"interrupted by {number}\n"
    assert [path.name for path in Path().iterdir()] == ["records"]


def test_a_signal_to_all_processes_is_not_reported_as_an_error(
    main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(*_: Any, **__: Any) -> None:
        send_signal("SIGTERM")
        raise DataError("a process of the generator was killed: out of memory?")

    monkeypatch.setattr(booking, "generate", work)
    assert main("data", "generate", "booking", "--out", "made") == 143
    assert capsys.readouterr().err == "interrupted by SIGTERM\n"


def sleep(seconds: int) -> int:
    time.sleep(seconds)
    return seconds


def test_closing_the_results_does_not_wait_for_the_workers() -> None:
    long_s = 100
    results, began = in_order(sleep, [0, long_s, long_s, long_s], 2), time.monotonic()
    assert next(results) == 0
    results.close()
    assert time.monotonic() - began < long_s and active_children() == []


# ---- streams ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "gone"])
def test_messages_without_a_reader_do_not_end_the_program(kind: str) -> None:
    if kind == "full":
        writer = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, writer = os.pipe()
        os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stream:
        lossy = streams.Lossy(stream)
        for _ in range(3):
            assert lossy.write("a line\n") == 7
            lossy.flush()
        assert os.fstat(lossy.fileno()).st_rdev == Path(os.devnull).stat().st_rdev


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_stream(
    main: Main, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], stream: str
) -> None:
    """A failed write to stdout is reported. For stderr nothing can be reported, and the exit code is that of the verb."""
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, stream, full)
        code = main("data", "info", "booking") if stream == "stdout" else main("data", "info", "bookin")
    assert code == 2
    message = capfd.readouterr().err
    assert message.startswith("error: standard output: No space left on device\n") == (stream == "stdout")
    assert "Traceback" not in message


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_stdout_is_utf_8_in_any_locale(
    main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str
) -> None:
    with (tmp_path / "out").open("w", encoding=encoding) as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main("list") == 0
    assert "───" in (tmp_path / "out").read_text(encoding="utf-8")


def test_an_argument_that_is_not_utf_8_is_reported(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("data", "generate", "booking", "--out", os.fsdecode(b"made\xff")) == 2
    assert capsys.readouterr().err.startswith("error: argument 'made\\udcff' is not UTF-8\n")


def test_a_closed_pipe_ends_the_program_without_a_message(
    main: Main, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main("data", "info", "booking") == 1
    assert capfd.readouterr().err == ""


def test_closed_streams_are_opened_on_dev_null(tmp_path: Path) -> None:
    """Otherwise the first opened file would get the number of stderr, and libraries would print into that file."""
    code = (
        "from buzzer.suite.cli import streams; streams.prepare(); import os, sys; file = open('made', 'w');"
        " print('x'); print('x', file=sys.stderr); os.write(2, b'x'); sys.exit(file.fileno() < 3)"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    command = ["bash", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code]
    assert subprocess.run(command, cwd=tmp_path, env=env, check=False).returncode == 0
    assert (tmp_path / "made").read_bytes() == b""


# ---- folders that cannot be written -------------------------------------------------------------------------------


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("work has begun")


@pytest.mark.parametrize("verb", ["run", "compare", "bench"])
@pytest.mark.parametrize("thing", ["a file", "a full disk"])
def test_an_out_folder_that_cannot_be_written_is_reported_before_any_work(
    main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], thing: str, verb: str
) -> None:
    if thing == "a file":
        Path("out").write_text("in the way")
    else:
        monkeypatch.setattr(Path, "write_text", no_space)
    for name in ("fit", "predict", "execute"):
        monkeypatch.setattr(runner, name, refuse)
    monkeypatch.setattr(booking, "generate", refuse)
    assert main(verb, "minilm-l6" if verb == "bench" else "booking", "--out", "out") == 2
    assert "error: cannot write out" in capsys.readouterr().err


def test_the_folder_of_the_markdown_file_is_checked_first_too(
    main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").write_text("in the way")
    monkeypatch.setattr(runner, "predict", refuse)
    monkeypatch.setattr(booking, "generate", refuse)
    assert main("compare", "booking", "--out", "out", "--markdown", "file/c.md") == 2


def no_space(path: Path, *_: Any, **__: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.parametrize("cache", ["good", "full"])
def test_a_full_disk_loses_no_result(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_record: Make,
    choose: Callable[..., TaskSelection],
    data: Data,
    cache: str,
) -> None:
    """The record is saved in the cache or, if that fails too, shown; the message says where it is."""
    monkeypatch.setenv("BUZZER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "out").write_text("a file")
    if cache == "full":
        (tmp_path / "cache").write_text("a file")
    shown = (tmp_path / "shown").open("w+")
    monkeypatch.setattr(runner, "predict", lambda *_: make_record(notes=["[red] \\[x]"]))
    (tmp_path / "folder").mkdir()
    with shown, pytest.raises(DataError) as caught, ProgressDisplay(Console(file=shown, width=40)) as display:
        executor = Executor(tmp_path / "folder", display)
        executor.out = tmp_path / "out"  # the folder could be written at the start, and cannot any more
        list(executor.run([Step(predict_runs(choose())[0], TaskWorkload(data, executor.out))]))
    if cache == "full":
        saved = json.loads((tmp_path / "shown").read_text())
        assert caught.value.message.endswith("is above, as JSON")
    else:
        (path,) = (tmp_path / "cache" / "records").glob("*/*/*.json")
        assert caught.value.message.endswith(f"is in {path}")
        saved = json.loads(path.read_text())
    assert saved["run_id"] == make_record().run_id and saved["notes"] == ["[red] \\[x]"]


def test_a_leaderboard_that_cannot_be_written_hides_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make_record: Make
) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DataError, match="cannot write"):
        run_verb.finish([make_record()], tmp_path / "out", as_json=True)
    assert json.loads(capsys.readouterr().out)["run_id"] == make_record().run_id

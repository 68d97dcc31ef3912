"""The command line: errors, output and exit codes. It runs in this process, except in three tests that start Python as a user does."""

import csv
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import typer
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from buzzer.engine import device, infer
from buzzer.models.api.context import GIVEN, Data
from buzzer.suite import cli, registry
from buzzer.suite.cli import check, run
from buzzer.suite.cli.outcome import exit_with
from buzzer.suite.cli.signals import ENDING
from buzzer.suite.records import machine, record
from buzzer.suite.records.schema import Gate, Record
from buzzer.suite.report import rerun
from buzzer.suite.run import runner

Make = Callable[..., Record]


class Ended(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Buzzer = Callable[..., Ended]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a separate cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BUZZER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("BUZZER_DATA", raising=False)
    return tmp_path


@pytest.fixture
def buzzer(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Buzzer]:
    """Runs the command line in this process."""
    handlers = {number: signal.getsignal(number) for number in ENDING}

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["buzzer", *arguments])
        monkeypatch.setattr(sys, "stdout", sys.stdout)  # restored after the test
        monkeypatch.setattr(sys, "stderr", sys.stderr)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        return Ended(int(str(end.value.code or 0)), *capsys.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def process(place: Path) -> Buzzer:
    """Runs the command line as a user does."""

    def run(*arguments: str) -> Ended:
        command = [sys.executable, "-m", "buzzer", *arguments]
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
        done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, check=False)
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["run", "bookin"], "unknown task 'bookin'", "did you mean booking?"),
        (["run", "booking", "--engine", "pandsa"], "unknown engine 'pandsa'", "did you mean pandas?"),
        (["run", "booking", "--backend", "onnx"], "unknown backend 'onnx'", "did you mean onnxruntime?"),
        (["run", "recsys2021", "--backend", "tl2cgen"], "nothing to run", "recsys2021 has pandas, "),
        (["run", "booking", "--backend", "onnxruntime+forest"], "nothing to run", "booking has pandas, "),
        (
            ["run", "bert-intent", "--backend", "torch_eager,openvino"],
            "no task of this plan has backend openvino",
            "onnxruntime",
        ),
        (
            ["run", "booking,bert-intent", "--backend", "all", "--engine", "pandas,cudf,dask"],
            "unknown engine 'dask'",
            "cudf",
        ),
        (["run", "recsys2021", "--backend", "onnxruntime+forst"], "unknown backend", "onnxruntime+forest"),
        (["run", "booking", "--precision", "int9"], "unknown precision 'int9'", "did you mean int8?"),
        (["frontier", "bert", "--precision", "int8-qta"], "unknown precision", "int8-qat?"),
        (["frontier", "gbdt"], "needs a BERT with trained weights; gbdt is not one", "minilm-l6"),
        (["frontier", "--batch", "2"], "No such option: --batch", ""),
        (["bench", "bert", "--frontier"], "No such option: --frontier", ""),
        (["bench", "minilm-l6", "--batch", "0"], "not whole numbers above zero", "1,100,10000"),
        (["bench", "minilm-l6", "--packing", "packd"], "unknown packing 'packd'", "did you mean packed?"),
        (["run", "booking", "--budget", "seed-gpu"], "unknown budget 'seed-gpu'", "did you mean seed-cpu?"),
        (["run", "booking", "--budget", "1c0g1h"], "a part of budget '1c0g1h' is zero", "every part"),
        (["run", "booking", "--budget", "10000c1g1h"], "10000 cores required", "--on-unmet-budget warn"),
        (["run", "booking", "--scale", "0"], "must be above 0", "official"),
        (["run", "booking", "--scale", "inf"], "1000 at most", "official"),
        (["data", "generate", "booking", "--out", "made", "--scale", "1e300"], "1000 at most", "official"),
        (["data", "generate", "booking", "--out", ""], "a path is empty", "`.` is the current folder"),
        (["run", "booking", "--out="], "a path is empty", "`.` is the current folder"),
        (["report", ""], "a path is empty", "`.` is the current folder"),
        (["bench", ""], "BenchRequest: model is ''", "leave the field out"),
        (["compare", "booking", "--full", "inf"], "1000 at most", "official"),
        (["run", "booking", "--set", "epoch=3"], "unknown parameter of booking 'epoch'", "known:"),
        (
            ["run", "booking", "--dry-run", "--set", "networks=[mpl]"],
            "unknown network 'mpl'",
            "did you mean mlp?",
        ),
        (
            ["compare", "booking", "--set", "valid=1.5"],
            "parameter valid=1.5: Input should be less than 1",
            "",
        ),
        (["run", "booking", "--set", "epochs"], "not of the form key=value", ""),
        (
            ["run", "booking", "--set", "epochs=0"],
            "parameter epochs=0: Input should be greater than 0",
            "--set",
        ),
        (["run", "booking", "--data", "nowhere"], "nowhere: no such folder", ""),
        (["run", "booking", "--device", "gpu"], "unknown device 'gpu'", "cuda"),
        (["run", "--data", "."], "--data needs a TASK", "booking"),
        (["run", "booking", "--data", ".", "--scale", "1"], "--scale sizes generated data", "leave out one"),
        (
            ["run", "booking", "--data", ".", "--train-scale", "1"],
            "--train-scale sizes generated",
            "leave out",
        ),
        (["run", "booking", "--scale", "1", "--train-scale", "2"], "2 is above --scale 1", "a sample"),
        (
            ["run", "booking", "--scale", "0.01", "--train-scale", "0.001"],
            "booking has no training part with",
            "leave out --train-scale",
        ),
        (["compare", "booking", "--train-scale", "0"], "--train-scale 0 must be above 0", "official"),
        (["run", "booking", "--gpus", "2"], "booking runs in one process", "recsys2021"),
        (
            ["run", "recsys2021", "--workers", "2", "--scheduler", "tcp://a:1"],
            "--workers starts",
            "leave out one",
        ),
        (["run", "--config", "none.yaml"], "none.yaml: No such file", ""),
        (["data", "info", "bokking"], "unknown data set 'bokking'", "did you mean booking?"),
        (["data", "score", "booking", "a.csv", "b.csv"], "a.csv: no such file", ""),
        (["check", "nothing.json"], "nothing.json: no such file", ""),
        (["report", "nothing"], "nothing: no such file", ""),
        (["report", "."], "no records found", "buzzer run"),
        (["data", "rescore", "booking", "."], "no records found", "buzzer run"),
        (["bench", "minilm-l6", "--scenario", "multi"], "unknown scenario 'multi'", "known: offline"),
        (["bench", "minilm-l6", "--device", "gpu"], "unknown device 'gpu'", "cuda (an NVIDIA GPU)"),
        (["compare", "bookin"], "unknown task 'bookin'", "did you mean booking?"),
        (["compare", "booking", "--from", "nothing"], "nothing: no such file", ""),
        (["compare", "booking", "--from", "."], "no timed runs of booking", "buzzer run"),
        (["compare", "booking", "--scale", "0.1,x"], "not numbers separated by commas", "0.01,0.02"),
        (["compare", "booking", "--budget", "999c1g1m"], "999 cores required", "smaller --budget"),
        (["compare", "booking", "--full", "0"], "--full 0 must be above 0", "official"),
        (["compare", "booking", "--scale", "0"], "must be above 0", "official"),
        (["compare", "booking", "--fail-if", "wall:5%"], "must be given together", "--against"),
        (["compare", "booking", "--against", ".", "--fail-if", "wal:5%"], "unknown figure 'wal'", "wall?"),
        (["compare", "booking", "--price", "cpu=e2"], "unknown price 'e2'", "e2-highmem-8"),
        (["compare", "booking", "--device", "gpu"], "unknown device 'gpu'", "cuda"),
        (["check", ".", "--data", "booking"], "not of the form TASK=FOLDER", "booking="),
        (["compare", "booking", "--from", ".", "--rounds", "3"], "--rounds is for new runs", "leave out one"),
        (
            ["compare", "booking", "--from", ".", "--on-unmet-budget", "warn"],
            "--on-unmet-budget is for new",
            "",
        ),
        (["bench", "minilm-l6", "--qps", "5"], "--qps is for a scenario of LoadGen", "add --scenario"),
        (["bench", "minilm-l6", "--loadgen-seeds", "1,2,3"], "--loadgen-seeds is for a scenario", "add"),
        (["bench", "minilm-l6", "--batch", "0"], "--batch 0: not whole numbers above zero", "1,100"),
        (["bench", "gbdt", "--packing", "packed"], "the rows of gbdt have no tokens", "for encoders"),
        (["bench", "gbdt", "--lengths", "real"], "the rows of gbdt have no tokens", "for encoders"),
        (["run", "booking", "--set", "networks=[mlp,mlp]"], "mlp is named twice", "--set networks"),
    ],
)
def test_bad_input_ends_in_one_message(buzzer: Buzzer, arguments: list[str], message: str, hint: str) -> None:
    done = buzzer(*arguments)
    text = done.stderr + done.stdout if arguments[0] == "check" else done.stderr
    assert done.returncode == 2, text
    assert message in text
    assert hint in text
    assert "Traceback" not in text


def test_a_score_that_is_not_defined_is_null(buzzer: Buzzer, tmp_path: Path) -> None:
    """The AUC is not defined if there is only one class."""
    (tmp_path / "s.csv").write_text("row,chance\n0,0.9\n5,0.2\n")
    (tmp_path / "t.csv").write_text("row,bought\n0,1\n5,1\n")
    done = buzzer("data", "score", "online_shoppers", "s.csv", "t.csv", "--json")
    assert json.loads(done.stdout, parse_constant=pytest.fail) == {"AUC": None, "accuracy": 0.5}
    text = buzzer("data", "score", "online_shoppers", "s.csv", "t.csv").stdout
    assert text.splitlines() == ["AUC not defined on these answers", "accuracy 0.500000"]


def test_an_unknown_flag_is_a_usage_error(process: Buzzer) -> None:
    done = process("run", "--engin", "pandas")
    assert done.returncode == 2
    assert "--engine" in done.stderr


def test_an_unknown_config_key_gets_a_suggestion(buzzer: Buzzer, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("enigne: pandas\n")
    done = buzzer("run", "--config", "c.yaml")
    assert done.returncode == 2
    assert "did you mean engine?" in done.stderr


def test_config_file_gives_options_and_flags_win(buzzer: Buzzer, tmp_path: Path) -> None:
    text = yaml.safe_dump(
        {"task": "booking", "engine": ["pandas", "polars"], "rounds": 2, "scale": 0.5, "budget": "quick"}
    )
    (tmp_path / "c.yaml").write_text(text)
    done = buzzer(
        "run", "--config", "c.yaml", "--backend", "torch_eager", "--scale", "0.25", "--dry-run", "--json"
    )
    plan = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(p["engine"], p["repeat"], p["scale"], p["budget"]) for p in plan] == [
        ("pandas", 0, 0.25, "quick"),
        ("polars", 0, 0.25, "quick"),
        ("pandas", 1, 0.25, "quick"),
        ("polars", 1, 0.25, "quick"),
    ]


def test_dry_run_shows_the_plan_and_runs_nothing(process: Buzzer, tmp_path: Path) -> None:
    done = process("run", "booking", "--engine", "pandas,polars", "--budget", "1c4g5m", "--dry-run")
    assert done.returncode == 0
    assert "4 timed runs" in done.stdout
    assert "at worst 20:00" in done.stdout
    assert "None" not in done.stdout  # there is no sample of the training rows
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("as_json", [False, True])
def test_the_size_of_given_files_is_not_planned(buzzer: Buzzer, tmp_path: Path, as_json: bool) -> None:
    """The task's default scale is that of generated data, and says nothing about the files."""
    (tmp_path / "trips").mkdir()
    options = ("--engine", "pandas", "--backend", "torch_eager", "--budget", "1c1g5m", "--data", "trips")
    options += ("--on-unmet-budget", "warn", "--dry-run", *(["--json"] if as_json else []))
    printed = buzzer("run", "booking", *options).stdout
    if as_json:
        plan = json.loads(printed)
        assert (plan["scale"], plan["expected_s"]) == (None, None)
    else:
        assert printed.count("of --data") == 3 and "0.02" not in printed  # the fit, the run and the note


def test_list_and_env_print_json(buzzer: Buzzer) -> None:
    listed = json.loads(buzzer("list", "--json").stdout)
    assert {"booking", "bert-intent"} <= set(listed["tasks"])
    assert set(listed["engines"]) == {"pandas", "polars", "cudf", "polars-gpu"}
    env = json.loads(buzzer("env", "--json").stdout)
    assert env["engines"]["pandas"] == env["engines"]["polars"] == ""
    assert set(env["counters"]) == {"CPU energy", "GPU use and energy"}
    assert env["machine"]["cores"] >= 1


def test_without_a_gpu_nothing_that_needs_one_works(buzzer: Buzzer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is installed; `fused` runs on a CPU only in Triton's interpreter."""
    monkeypatch.setattr(device, "cuda_problem", lambda *_: "no driver")
    find, pretended = importlib.util.find_spec, {"cudf", "onnxruntime", "tensorrt", "triton"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: object() if name in pretended else find(name, *more)
    )
    monkeypatch.setattr(infer, "lacks_library", lambda backend: False)
    env = json.loads(buzzer("env", "--json").stdout)
    needing = ["onnxruntime_cuda", "onnxruntime_tensorrt", "tensorrt", "fused"]
    assert {name: env["backends"][name] for name in needing} == dict.fromkeys(
        needing, "no CUDA device here: no driver"
    )
    assert env["engines"]["cudf"] == "engine cudf needs a CUDA device: no driver"
    assert env["backends"]["onnxruntime"] == env["backends"]["torch_eager"] == ""


def test_check_distinguishes_good_records_from_bad_ones(
    process: Buzzer, tmp_path: Path, make_record: Make
) -> None:
    path = record.write(make_record(), tmp_path / "r")
    assert process("check", "r").returncode == 0
    path.write_text(path.read_text().replace("2.0", "2.5"))
    done = process("check", "r", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["ok"] is False
    assert "0 of 1 records are valid" in done.stderr


def test_report_renders_and_writes(buzzer: Buzzer, tmp_path: Path, make_record: Make) -> None:
    record.write(make_record(), tmp_path / "r")
    (tmp_path / "r" / "broken.json").write_text("{")
    done = buzzer("report", "r")
    assert done.returncode == 0
    assert "| 1 | none | torch_eager |" in done.stdout
    assert "left out: r/broken.json" in done.stderr
    assert buzzer("report", "r", "--out", "board.md").returncode == 0
    assert (tmp_path / "board.md").read_text() == done.stdout


def test_a_report_is_written_whole_or_not_at_all(buzzer: Buzzer, tmp_path: Path, make_record: Make) -> None:
    record.write(make_record(), tmp_path / "r")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.json").write_text("{}")
    (tmp_path / "board.md").write_text("kept")
    for command, message in (
        (["bad", "--out", "board.md"], "no valid record among these files"),
        (["r", "--out", "board.md", "--headline", "h.svg"], "no record of a task with a published time"),
        (["r", "--out", "board.md", "--csv", "board.md"], "two outputs have the path board.md"),
        (["r", "--out", "board.md", "--csv", "r"], "r is a folder"),
    ):
        done = buzzer("report", *command)
        assert done.returncode == 2 and message in done.stderr
        assert (tmp_path / "board.md").read_text() == "kept"
    done = buzzer("report", "r", "--out", "board.md", "--json")
    assert json.loads(done.stdout)["task"] == "fake"
    assert (tmp_path / "board.md").read_text().startswith("# Leaderboard")
    done = buzzer("compare", "fake", "--from", "r", "--markdown", "r")
    assert done.returncode == 2


def test_report_prints_every_record_as_json(buzzer: Buzzer, tmp_path: Path, make_record: Make) -> None:
    """Also fits, which no table shows."""
    for job, run_id in (("predict", "a" * 32), ("fit", "b" * 32)):
        record.write(make_record(job=job, run_id=run_id), tmp_path / "r")
    lines = map(json.loads, buzzer("report", "r", "--json").stdout.splitlines())
    assert [(line["job"], line["ranked"]) for line in lines] == [("predict", True), ("fit", False)]


def test_report_draws_the_tables(buzzer: Buzzer, tmp_path: Path, make_record: Make) -> None:
    record.write(make_record(), tmp_path / "r")
    assert buzzer("report", "r", "--svg", "board.svg").returncode == 0
    drawn = (tmp_path / "board.svg").read_text()
    assert drawn.startswith("<svg")
    assert "torch_eager" in drawn


def test_help_is_printed_as_it_is_written() -> None:
    """Text in square brackets would be read as markup, and not be printed."""
    commands = list(get_command(cli.app).commands.values())  # type: ignore[attr-defined]
    commands += [command for group in commands for command in getattr(group, "commands", {}).values()]
    texts = [text for c in commands for text in (c.help, *(getattr(p, "help", "") for p in c.params))]
    assert len(texts) > 100
    assert not [text for text in texts if "[" in (text or "")]


def test_no_option_is_called_like_its_value() -> None:
    """Typer 0.27 names such an option after the value: --SECONDS in place of --seconds."""
    verbs: Any = get_command(cli.app)
    leaves = [
        leaf for verb in verbs.commands.values() for leaf in getattr(verb, "commands", {"": verb}).values()
    ]
    options = [each for leaf in leaves for each in leaf.params if each.param_type_name == "option"]
    assert len(options) > 50
    assert [each.name for each in options if str(each.metavar).lower() == each.name] == []


def test_brackets_in_messages_are_shown_as_they_are(buzzer: Buzzer) -> None:
    done = buzzer("run", "booking", "--engine", "[red]")
    assert done.returncode == 2
    assert "unknown engine '[red]'" in done.stderr


def test_the_schema_is_printed(buzzer: Buzzer) -> None:
    assert json.loads(buzzer("check", "--schema").stdout)["title"] == "Record"


def test_compare_from_records_prints_writes_and_fails(
    buzzer: Buzzer, tmp_path: Path, make_record: Make
) -> None:
    slow = [{"name": "predict", "wall_s": 3.0, "cpu_s": 1.0, "peak_memory_bytes": 1}]
    for folder, changes in (("old", {}), ("new", {"wall_s": 3.0, "phases": slow, "samples": {}})):
        for repeat in range(3):
            run_id = f"{folder}{repeat:05}" * 4
            booking = {
                "task": "booking",
                "engine": "pandas",
                "metric": "accuracy@4",
                "scores": {"accuracy@4": 0.4},
            }
            r = make_record(**booking, repeat=repeat, run_id=run_id, **changes)
            record.write(r, tmp_path / folder)
    arguments = ["compare", "booking", "--from", "new", "--against", "old", "--fail-if"]
    done = buzzer(*arguments, "wall:10%", "--markdown", "c.md")
    assert done.returncode == 1
    assert "REGRESSED" in done.stdout
    assert "+50.0 %" in (tmp_path / "c.md").read_text()
    assert buzzer(*arguments, "wall:60%").returncode == 0
    for wrong, message in (
        ("phase.predct:5%", "unknown phase 'phase.predct'"),
        ("energy:5%", "--fail-if energy: the runs and older records of no variant both have this figure"),
    ):
        done = buzzer(*arguments, "wall:60%", "--fail-if", wrong)
        assert done.returncode == 2 and message in done.stderr
    broken = record.read(next((tmp_path / "new").rglob("*.json")))
    record.write(
        broken.model_copy(
            update={"outcome": "error", "message": "killed", "scores": {}, "gate": Gate(status="unscored")}
        ),
        tmp_path / "broken",
    )
    arguments[3] = "broken"
    done = buzzer(*arguments, "wall:60%")
    assert done.returncode == 1 and "FAILED" in done.stdout
    compared = json.loads(buzzer("compare", "booking", "--from", "new", "--json").stdout)
    assert compared["runs"][0]["wall_s"] == 3.0
    assert compared["runs"][0]["head_room"]["time"] == pytest.approx(0.9)


def test_several_tasks_and_all_tasks(buzzer: Buzzer) -> None:
    common = ("--budget", "1c1g1m", "--on-unmet-budget", "warn", "--dry-run", "--json")

    def tasks(*names: str) -> set[str]:
        return {json.loads(line)["task"] for line in buzzer("run", *names, *common).stdout.splitlines()}

    assert tasks("booking,online-shoppers") == tasks("booking", "online-shoppers")
    assert tasks("booking,online-shoppers") == {"booking", "online-shoppers"}
    assert tasks("all") == tasks("booking", "all") == set(registry.tasks())


@pytest.mark.parametrize(
    ("verb", "times"),
    [
        (["run", "recsys2021", "recsys2021-lite,recsys2021", "--scale", "0.001"], 1),
        (["compare", "recsys2021", "--scale", "0.001,0.001", "--rounds", "1"], 2),  # and its A/A run
        (["bench", "minilm-l6", "--batch", "1,1", "--rounds", "1", "--precision", "fp32,fp32"], 1),
    ],
)
def test_what_is_named_twice_runs_once(buzzer: Buzzer, verb: list[str], times: int) -> None:
    options = ["--backend", "torch_eager,torch_eager"]
    if verb[0] != "bench":
        options += ["--engine", "pandas,pandas", "--budget", "1c1g1m", "--on-unmet-budget", "warn"]
    done = buzzer(*verb, *options, "--dry-run", "--json")
    assert len(done.stdout.splitlines()) == times


def test_an_alias_is_a_name_of_its_task(buzzer: Buzzer, tmp_path: Path, make_record: Make) -> None:
    scores = {"RCE": 10.0}
    made = make_record(task="recsys2021", engine="pandas", metric="RCE", scores=scores, scale=0.001)
    record.write(made, tmp_path / "r")
    for command in (["compare", "{}", "--from", "r"], ["data", "info", "{}"]):
        full, short = (
            buzzer(*(word.format(name) for word in command)) for name in ("recsys2021", "recsys2021-lite")
        )
        assert full.returncode == short.returncode == 0, short.stderr
        assert full.stdout == short.stdout


def test_check_knows_the_files_of_an_alias(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entry = SimpleNamespace(prepare=lambda *_: SimpleNamespace(fingerprint="f" * 64))
    monkeypatch.setattr(check, "load_entry", lambda *_: entry)
    assert check.fingerprint(f"recsys2021-lite={tmp_path}") == ("recsys2021", "f" * 64)


@pytest.mark.parametrize("verb", ["run", "compare"])
def test_the_plan_lists_fits_rounds_and_what_cannot_run(
    buzzer: Buzzer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str
) -> None:
    monkeypatch.setattr(device, "cuda_problem", lambda *_: "no driver")
    options = ("--engine", "pandas,polars", "--backend", "torch_eager", "--budget", "1c1g1m", "--rounds", "3")
    devices = ("--device", "cpu,cuda") if verb == "compare" else ()
    done = buzzer(verb, "booking", *options, *devices, "--on-unmet-budget", "warn", "--dry-run")
    lines = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()]
    rounds = "3 + 3 A/A" if verb == "compare" else "3"
    assert lines[0][0].startswith(f"{6 if verb == 'run' else 18} timed runs, and 1 fit unless")
    assert ["fit", "booking", "polars", "torch_eager", "fp32", "cpu"] in [line[:6] for line in lines]
    assert any(line[:3] == ["predict", "booking", "pandas"] and rounds in line for line in lines)
    assert ("no CUDA device here: no driver" in done.stdout) == (verb == "compare")
    assert not list(tmp_path.rglob("*.json"))


def test_the_plan_estimates_times_from_past_records(
    buzzer: Buzzer, tmp_path: Path, make_record: Make
) -> None:
    task = registry.task("booking")
    past = make_record(
        task="booking",
        engine="pandas",
        metric="accuracy@4",
        scores={"accuracy@4": 0.4},
        scale=0.02,
        config=task.params,
        config_hash=task.config_hash,
        machine=machine.machine().model_dump(),
    )
    budget = f"{past.budget.cores}c1g5m"
    record.write(past, tmp_path / "out")
    options = ("--engine", "pandas", "--backend", "torch_eager", "--budget", budget, "--out", "out")
    done = buzzer("run", "booking", *options, "--on-unmet-budget", "warn", "--dry-run")
    assert "1 of 2 take about 0:02" in done.stdout


def test_nothing_that_can_run_is_an_error(buzzer: Buzzer, monkeypatch: pytest.MonkeyPatch) -> None:
    """No fit is made, each run has a record, and the exit code is that of a machine that lacks something."""
    monkeypatch.setattr(device, "cuda_problem", lambda *_: "no driver")
    options = (
        "--backend",
        "torch_eager",
        "--device",
        "cuda",
        "--budget",
        "1c1g1m",
        "--on-unmet-budget",
        "warn",
    )
    done = buzzer("run", "online-shoppers", "--engine", "pandas", "--scale", "0.05", *options, "--json")
    assert done.returncode == 2
    assert "nothing was measured" in done.stderr
    (made,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (made["job"], made["outcome"], made["message"]) == (
        "predict",
        "unsupported",
        "no CUDA device here: no driver",
    )


def test_a_bench_that_cannot_run_computes_no_reference(
    buzzer: Buzzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "cuda_problem", lambda *_: "no driver")
    monkeypatch.setattr(runner, "bench", lambda *_: pytest.fail("a process was started"))
    options = (
        "--backend",
        "torch_eager,openvino",
        "--precision",
        "fp32",
        "--device",
        "cuda",
        "--rounds",
        "2",
    )
    done = buzzer("bench", "minilm-l6", *options, "--json")
    assert done.returncode == 2
    assert "nothing was measured" in done.stderr
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(r["backend"], r["outcome"], r["message"]) for r in made} == {
        ("torch_eager", "unsupported", "no CUDA device here: no driver"),
        ("openvino", "unsupported", "backend openvino does not run on cuda"),
    }
    planned = buzzer("bench", "minilm-l6", *options, "--dry-run")
    assert "no CUDA device here: no driver" in planned.stdout


@pytest.mark.parametrize(
    ("changes", "ended_by", "code"),
    [
        ([{}], 0, 0),
        ([{}, {"outcome": "unsupported"}], 0, 0),
        ([{"outcome": "unsupported"}, {"outcome": "unsupported"}], 0, 2),
        ([{"job": "fit"}, {"outcome": "unsupported"}], 0, 2),
        ([{"outcome": "timeout"}, {"outcome": "unsupported"}], 0, 1),
        ([{"outcome": "error", "details": {"interrupted": True}}], signal.SIGINT, 130),
        ([{"outcome": "error", "details": {"interrupted": True}}], signal.SIGTERM, 143),
        ([{"outcome": "error", "details": {"interrupted": True}}], 0, 130),
    ],
)
def test_the_exit_code_says_how_runs_ended(
    make_record: Make, changes: list[dict[str, Any]], ended_by: int, code: int
) -> None:
    records = [make_record().model_copy(update=change) for change in changes]
    try:
        exit_with(records, ended_by)
    except typer.Exit as end:
        assert end.exit_code == code
    else:
        assert code == 0


def test_a_run_without_its_reference_says_how_to_get_ranked(make_record: Make) -> None:
    lonely = make_record(
        task="booking", engine="polars", backend="onnxruntime", gate={"status": "no-reference"}, seed=3,
        precision="int8",
    )  # fmt: skip
    fit = lonely.model_copy(update={"job": "fit"})
    (line,) = rerun.references([fit, lonely, lonely])
    command = line.rpartition(": ")[2]
    assert "compared with those of pandas torch_eager fp32" in line
    assert command.startswith(
        "buzzer run booking --engine pandas --backend torch_eager --precision fp32 --budget"
    )
    assert command.endswith("--seed 3")
    assert rerun.references([make_record(task="booking")]) == []


def test_the_command_of_a_bench_measures_the_same(make_record: Make, tmp_path: Path) -> None:
    config = {"model": {"spec": "bert-base"}, "batch": 4, "seq": 0, "lengths": "fixed", "packing": "padded"}
    config |= {"scenario": "", "bound": 130.0, "count": 50, "loadgen_seeds": [0, 0, 0]}
    budget = {"name": "unlimited", "cores": None, "memory_bytes": None, "time_s": None}
    common = {"job": "bench", "task": "bert-base", "budget": budget}

    def words(**changes: Any) -> str:
        command = rerun.command(make_record(**common, config=config | changes))
        prefix = "buzzer bench bert-base --backend torch_eager --precision fp32 --batch 4"
        assert command.startswith(prefix)
        return command.removeprefix(prefix).strip()

    assert words() == ""
    assert words(seq=64, lengths="real", packing="packed") == "--seq 64 --lengths real --packing packed"
    assert words(scenario="server", bound=9.5, loadgen_seeds=[1, 2, 3], count=8) == (
        "--scenario server --bound 9.5 --loadgen-seeds 1,2,3 --count 8"
    )
    assert words(inputs_file="/data/a b.npz") == "--inputs '/data/a b.npz'"
    model = str(tmp_path / "x.onnx")
    made = make_record(**common | {"task": "x"}, config=config | {"model": {"path": model}})
    assert rerun.command(made).startswith(f"buzzer bench {model} --backend")


def test_the_command_of_a_run_reads_its_parameters_back(make_record: Make) -> None:
    task = registry.task("booking")
    made = make_record(task="booking", engine="pandas", config=task.params | {"lr": 0.00001})
    pair = rerun.command(made).rpartition("--set ")[2]
    assert task.with_params({"lr": pair.removeprefix("lr=")}).params["lr"] == 0.00001
    given = made.model_copy(update={"data_source": "generated", "notes": [GIVEN], "train_scale": 0.001})
    assert "--data FOLDER --set" in rerun.command(given)


def test_show_explains_a_record(buzzer: Buzzer, tmp_path: Path, make_record: Make) -> None:
    r = make_record(message="", gate={"status": "no-reference"})
    path = record.write(r, tmp_path / "results")
    submission = tmp_path / "results" / "files" / r.run_id[:8] / "submission.csv"
    submission.parent.mkdir(parents=True)
    submission.write_text("1\n")
    text = buzzer("show", str(path)).stdout
    assert text.splitlines()[0] == "fake predict, torch_eager fp32 1c2g30s: ok after 2.00 s"
    assert "gate: no-reference, not ranked" in text
    assert f"file: {submission.relative_to(tmp_path)}" in text
    for phase in r.phases:
        assert re.search(rf"^ {phase.name} +{phase.wall_s:.3f} ", text, re.MULTILINE)
    assert buzzer("show", r.run_id[:6]).stdout.splitlines()[0] == text.splitlines()[0]
    assert json.loads(buzzer("show", r.run_id[:8], "--json").stdout)["run_id"] == r.run_id
    for wrong, message in (("ffff", "no record under results"), ("nothing.json", "no such record")):
        done = buzzer("show", wrong)
        assert done.returncode == 2 and message in done.stderr


def test_the_csv_has_a_row_for_each_record(buzzer: Buzzer, tmp_path: Path, make_record: Make) -> None:
    for repeat in range(2):
        hint = ("=1+1", "a = b")[repeat]
        record.write(make_record(repeat=repeat, run_id=str(repeat) * 32, hint=hint), tmp_path / "r")
    assert buzzer("report", "r", "--csv", "board.csv").returncode == 0
    with (tmp_path / "board.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["repeat"] for row in rows] == ["0", "1"]
    assert [row["hint"] for row in rows] == ["'=1+1", "a = b"]  # the first would be computed
    assert {row["score_accuracy"] for row in rows} == {str(make_record().scores["accuracy"])}


def test_compare_from_records_obeys_its_filters(buzzer: Buzzer, tmp_path: Path, make_record: Make) -> None:
    for number, (engine, backend) in enumerate(product(("pandas", "polars"), ("torch_eager", "onnxruntime"))):
        fields = {"task": "booking", "metric": "accuracy@4", "scores": {"accuracy@4": 0.4}}
        status = "reference" if (engine, backend) == ("pandas", "torch_eager") else "no-reference"
        variant = {
            "engine": engine,
            "backend": backend,
            "run_id": str(number) * 32,
            "gate": {"status": status},
        }
        made = make_record(**fields, **variant)
        record.write(made, tmp_path / "r")

    def variants(*options: str) -> set[tuple[str, str]]:
        compared = json.loads(buzzer("compare", "booking", "--from", "r", *options, "--json").stdout)
        return {(run["variant"]["engine"], run["variant"]["backend"]) for run in compared["runs"]}

    assert len(variants()) == len(variants("--engine", "all")) == 4
    assert variants("--engine", "polars", "--backend", "onnxruntime") == {("polars", "onnxruntime")}
    assert (
        variants("--device", "cpu", "--precision", "fp32", "--budget", "1c2g30s", "--scale", "1")
        == variants()
    )
    for options, message in (
        (("--engine", "cudf"), "unknown engine among these records 'cudf'"),
        (("--scale", "0.5"), "unknown scale among these records '0.5'"),
        (("--set", "epochs=1"), "--set is for new runs"),
        (("--seed", "1"), "--seed is for new runs"),
        (("--resume",), "--resume is for new runs"),
        (("--dry-run",), "--from runs nothing"),
    ):
        done = buzzer("compare", "booking", "--from", "r", *options)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("buzzer run book", {"booking", "booking-winners"}),
        ("buzzer run booking --engine pandas,pol", {"pandas,polars", "pandas,polars-gpu"}),
        ("buzzer bench bert-l", {"bert-large"}),
        ("buzzer compare booking --budget se", {"seed-cpu"}),
        ("buzzer sho", {"show"}),
    ],
)
def test_the_shell_completes_names(words: str, expected: set[str]) -> None:
    env = {"_BUZZER_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = CliRunner().invoke(cli.app, env=env, prog_name="buzzer")
    assert set(done.stdout.split()) == expected


def test_every_command_has_json() -> None:
    verbs: Any = get_command(cli.app)
    verbs = verbs.commands | {f"data {name}": verb for name, verb in verbs.commands["data"].commands.items()}
    del verbs["data"]
    without = [name for name, verb in verbs.items() if not any("--json" in p.opts for p in verb.params)]
    assert len(verbs) > 12 and without == []


def test_a_folder_that_was_made_is_printed(buzzer: Buzzer, place: Path) -> None:
    made = buzzer("data", "generate", "booking", "--scale", "0.0005", "--out", "made", "--json")
    assert json.loads(made.stdout) == {"path": "made"}
    assert json.loads(buzzer("data", "convert", "booking", "made", "--out", "p", "--json").stdout) == {
        "path": "p"
    }


def test_rescore_makes_the_data_that_each_run_had(
    buzzer: Buzzer, place: Path, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generated files of each size once; official files come from --data, or from where the task finds them."""
    made: list[tuple[Any, float, int]] = []

    def prepare(source: Path | None, cache: Path, scale: float, seed: int, progress: object) -> Data:
        made.append((source, scale, seed))
        return Data(place, f"{len(made):064x}", "generated", {}, scale)

    monkeypatch.setattr(cli.data, "load_entry", lambda *_: SimpleNamespace(prepare=prepare))
    (place / "ground_truth.csv").write_text("utrip_id,city_id,hotel_country\n1_1,12,X\n2_1,99,Y\n")
    rows = "utrip_id,city_id_1,city_id_2,city_id_3,city_id_4\n1_1,10,11,12,13\n2_1,20,21,22,23\n"
    runs: list[dict[str, Any]] = [
        {"scale": 0.002, "seed": 3, "data_fingerprint": f"{1:064x}"},
        {"scale": 0.004, "data_fingerprint": f"{2:064x}"},
        {"scale": 0.002, "seed": 3, "data_fingerprint": f"{1:064x}"},
        {"data_source": "official", "data_fingerprint": "e" * 64},
    ]
    for number, changes in enumerate(runs):
        fields = {"task": "booking", "metric": "accuracy@4", "scores": {"accuracy@4": 0.5}}
        r = make_record(**({"data_source": "generated", "run_id": str(number) * 32} | fields | changes))
        record.write(r, place / "out")
        kept = place / "out" / "files" / r.run_id[:8]
        kept.mkdir(parents=True, exist_ok=True)
        (kept / "submission.csv").write_text(rows)
    done = buzzer("data", "rescore", "booking", "out")
    assert made == [(None, 0.002, 3), (None, 0.004, 0), (None, registry.task("booking").scale, 0)]
    assert "3 of 4 records" in done.stderr
    assert "other data: official" in done.stdout and "--data" in done.stdout


def test_the_leaderboard_has_the_runs_that_another_call_has_written_meanwhile(
    make_record: Make, tmp_path: Path
) -> None:
    for engine, digit in (("pandas", "a"), ("polars", "b")):
        record.write(make_record(engine=engine, run_id=digit * 32), tmp_path)
    run.finish([], tmp_path, as_json=False)
    board = (tmp_path / "leaderboard.md").read_text()
    assert "pandas" in board and "polars" in board

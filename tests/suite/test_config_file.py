"""The file of --config and the values of --set. Allowed values become flags; anything else is one message that names the key."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from buzzer import configs
from buzzer.errors import UsageError
from buzzer.suite import cli, config_file, registry
from buzzer.suite.requests import RunRequest
from buzzer.suite.run import resolve


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "options.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("", {}),
        ("engine: [pandas, polars]\nrounds: 3", {"engine": "pandas,polars", "rounds": 3}),
        ("task: booking", {"task": ["booking"]}),
        ("task: [booking, bert-intent]", {"task": ["booking", "bert-intent"]}),
        ("scale: 1", {"scale": 1.0}),
        ("data: in\nout: made", {"data": Path("in"), "out": Path("made")}),
        ("dry-run: true\njson: true", {"dry_run": True, "as_json": True}),
        ("on_unmet_budget: warn\nseed:", {"on_unmet_budget": "warn"}),
        ("set: {a: 1, b: [x, 2.5]}", {"set_": ["a=1", "b=[x, 2.5]"]}),
        ("set: [a=1]", {"set_": ["a=1"]}),
    ],
)
def test_allowed_values_become_flags(text: str, flags: dict[str, Any], tmp_path: Path) -> None:
    assert config_file.read(written(tmp_path, text)) == flags


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+.1e-2", "1.e-3", "0.001", "1.0e-03"])
def test_numbers_may_have_exponents(text: str, tmp_path: Path) -> None:
    assert config_file.read(written(tmp_path, f"scale: {text}"))["scale"] == 0.001
    assert registry.task("booking").with_params({"lr": text}).params["lr"] == 0.001


@pytest.mark.parametrize("text", ["1e-3", "1e5", "e5", "1e", "0x1", "1_0e3", ".e3"])
def test_a_text_that_looks_like_a_number_stays_a_text(text: str) -> None:
    assert config_file.parse(config_file.yaml_text(text), "it") == text


@pytest.mark.parametrize(
    "value", [1, -2.5, 0.00001, "", "1", "null", "a: b", [1, [2]], {"k": [None, True]}, "é\n", 1e-300]
)
def test_a_parameter_reads_back_as_it_was(value: Any, tmp_path: Path) -> None:
    path = written(tmp_path, yaml.safe_dump({"set": {"key": value}}))
    (pair,) = config_file.read(path)["set_"]
    assert config_file.parse(pair.removeprefix("key="), "it") == value


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nset: {bomb: *c}"


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("engine: 1", "engine is 1 (int)", "engine: an engine's name, a list of them, or all"),
        ("engine: no", "engine is False (bool)", "an engine's name"),
        ("engine: [[pandas]]", "engine is [['pandas']] (list)", "an engine's name"),
        ("task: true", "task is True (bool)", "a task's name"),
        ("scale: x", "scale is 'x' (str)", "a number above 0"),
        ("scale: .nan", "scale is nan (float)", "a number above 0"),
        ("scale: 1001", "scale is 1001 (int)", "1000 at most"),
        ("scale: 0", "scale is 0 (int)", "a number above 0"),
        ("scale: true", "scale is True (bool)", "a number above 0"),
        ("rounds: 99999999", "rounds is 99999999 (int)", "from 1 to 10000"),
        ("rounds: '3'", "rounds is '3' (str)", "a whole number"),
        ("seed: [1, 2]", "seed is [1, 2] (list)", "a whole number"),
        ("resume: 1", "resume is 1 (int)", "true or false"),
        ("json: yess", "json is 'yess' (str)", "true or false"),
        ("data: {a: 1}", "data is {'a': 1} (dict)", "a folder"),
        ("set: 3", "set is 3 (int)", "a mapping of parameters"),
        (f"budget: {'x' * 900}: 1", "not YAML", ""),
        ("engin: pandas", "unknown key in", "did you mean engine"),
        ("config: other.yaml", "unknown key in", ""),
        ("- engine", "not a mapping of options", "engine: pandas,polars"),
        ("engine: pandas\nengine: polars", "a key is given twice", ""),
        (BOMB, "aliases", ""),
        ("engine: [" * 3000, "nested too deep", ""),
        ("seed: 2020-13-45", "not YAML", ""),
        ("? [a, b]\n: 1", "not YAML", ""),
        ("a: !!python/object/apply:os.system [ls]", "not YAML", ""),
        (b"engine: \xff", "not UTF-8 at byte 8", "UTF-8"),
        (b"#" * (config_file.MOST_BYTES + 1), "larger than 1,048,576 bytes", ""),
    ],
)
def test_any_other_file_is_one_message(content: str | bytes, message: str, hint: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UsageError) as caught:
        config_file.read(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message
    assert hint in caught.value.hint
    assert len(caught.value.message) < 400 + len(str(path))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(UsageError, match=str(path)):
            config_file.read(path)


def test_damaged_files_give_flags_or_a_message(tmp_path: Path) -> None:
    sound = b"task: [booking]\nengine: pandas\nscale: 0.5\nset: {eta: 0.1, names: [a, b]}\njson: true\n"
    rng, refused = random.Random(0), 0
    for _ in range(500):
        data = bytearray(sound)
        for _ in range(rng.choice([1, 2, 5])):
            data[rng.randrange(len(data))] = rng.choice(b" :[]{}&*!'\"-.\n\x00\xff019eE")
        try:
            assert isinstance(config_file.read(written(tmp_path, bytes(data))), dict)
        except UsageError as error:
            refused += 1
            assert "\n" not in error.message
    assert 100 < refused < 500


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("dim=x", "dim is of type int"),
        ("dim=" + "[" * 3000, "nested too deep"),
        ("dim=2020-13-45", "not YAML"),
        ("networks=[1]", "1 is not of type str"),
        ("networks=[[mlp]]", "is not of type str"),
        ("lr=.nan", "not a finite number"),
    ],
)
def test_values_of_parameters(pair: str, message: str) -> None:
    key, _, value = pair.partition("=")
    with pytest.raises(UsageError) as caught:
        registry.task("booking").with_params({key: value})
    assert message in caught.value.message


@pytest.mark.parametrize(
    "verb",
    [
        ["run", "booking"],
        ["compare", "booking"],
        ["bench", "gbdt"],
        ["data", "generate", "booking", "--out", "made"],
    ],
)
@pytest.mark.parametrize("seed", ["-1", str(2**31)])
def test_seeds_that_a_library_does_not_accept_are_refused(
    verb: list[str], seed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "seed" in refused([*verb, "--seed", seed], capsys)


def test_too_many_repetitions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (
        ["run", "booking", "--rounds"],
        ["compare", "booking", "--rounds"],
        ["bench", "gbdt", "--rounds"],
    ):
        assert "10000" in refused([*verb, "99999999"], capsys)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message on a command line that is refused by its parser, or later with a UsageError."""
    with pytest.raises((SystemExit, UsageError)) as caught:
        cli.app(arguments, standalone_mode=True)
    if isinstance(caught.value, SystemExit):
        assert caught.value.code == 2
    return capsys.readouterr().err + str(caught.value)


@pytest.mark.parametrize(
    "path", sorted(Path(configs.__file__).parent.glob("records/*.yaml")), ids=lambda path: path.stem
)
def test_the_plan_of_each_published_record_is_of_several_rounds_on_one_core(path: Path) -> None:
    """The files that `make records` runs: each names a task and is a valid plan."""
    flags = config_file.read(path)
    assert flags["task"] == [path.stem]
    request = RunRequest(
        path.stem,
        engines=flags.get("engine", ""),
        backends=flags["backend"],
        budget=flags["budget"],
        scale=flags.get("scale"),
        train_scale=flags.get("train_scale"),
        rounds=flags["rounds"],
        params=dict(pair.split("=", 1) for pair in flags.get("set_", [])),
        on_unmet_budget="warn",
    )
    plan = resolve.run_plan(request)
    assert {run.budget.cores for run in plan.timed} == {1}
    assert len(plan.timed) == 5 * len({(run.engine, run.backend) for run in plan.timed})

"""Input files and typed parameters of all tasks."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from buzzer.datasets.contract import silent
from buzzer.datasets.files import Files
from buzzer.errors import UsageError
from buzzer.models.api.context import RunContext
from buzzer.models.dataset_task import DatasetTask, DataSource, TaskParams
from buzzer.suite import registry


class Params(TaskParams):
    rate: float
    names: list[str]
    cut: bool


def task_of(entry: str) -> DatasetTask[Any]:
    module, _, name = entry.partition(":")
    task: DatasetTask[Any] = getattr(importlib.import_module(module), name)
    return task


@pytest.mark.parametrize("name", registry.tasks())
def test_the_parameters_of_every_task_are_those_of_its_file(name: str) -> None:
    config = registry.task(name)
    params = task_of(config.entry).params_type.read(name, config.params)
    assert params.model_dump() == config.params


@pytest.mark.parametrize("name", registry.tasks())
def test_no_number_may_be_negative(name: str) -> None:
    config = registry.task(name)
    task = task_of(config.entry)
    task.check(name, config.params)
    numbers = {key: value for key, value in config.params.items() if has_numbers(value)}
    assert numbers
    for key, value in numbers.items():
        negative = [-1.0] if isinstance(value, list) else -1
        with pytest.raises(UsageError, match=f"^{name}: parameter {key}=.*: Input should be greater than"):
            task.check(name, config.params | {key: negative})


def has_numbers(value: Any) -> bool:
    """Whether a parameter is a number, or a list or mapping of numbers."""
    values = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
    leaves = [leaf for inner in values for leaf in (inner.values() if isinstance(inner, dict) else [inner])]
    return bool(leaves) and all(
        isinstance(leaf, int | float) and not isinstance(leaf, bool) for leaf in leaves
    )


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("booking", {"candidates": 3}, "candidates=3: Input should be greater than or equal to 4"),
        ("booking", {"batch": 1}, "batch=1: Input should be greater than or equal to 2"),
        ("booking", {"valid": 1.0}, "valid=1.0: Input should be less than 1"),
        ("booking", {"dropout": {"mlp": 0.1, "gru": 2.0, "encoder": 0.1}}, "dropout=.*: Input should be less"),
        ("booking", {"lr": 0.0}, "lr=0.0: Input should be greater than 0"),
        ("booking", {"networks": ["mpl"]}, "unknown network 'mpl'"),
        ("recsys2021", {"depth_1": 17}, "depth_1=17: Input should be less than or equal to 16"),
        ("recsys2021", {"eta": {"kfold": {"reply": 1.5}}}, "eta=.*: Input should be less than or equal to 1"),
        ("recsys2021", {"hidden": 3}, "hidden=3: Input should be greater than or equal to 4"),
        ("recsys2021", {"tables": "draw"}, "tables=draw: Input should be 'text' or 'drawn'"),
        ("recsys2021", {"trees": ["kfolds"]}, "unknown model of trees 'kfolds'"),
        ("sigir-ecom-task1", {"predict_batch": 0}, "predict_batch=0: Input should be greater than 0"),
        ("sigir-ecom-task1", {"models": {"gru": {"dropout": 1.0}}}, "network gru: parameter dropout=1.0"),
        ("sigir-ecom-task2", {"query_dims": 51}, "query_dims=51: Input should be less than or equal to 50"),
        ("complete-journey", {"valid": 0.0}, "valid=0.0: Input should be greater than 0"),
        ("online-shoppers", {"colsample": 0.0}, "colsample=0.0: Input should be greater than 0"),
        ("open-bandit", {"subsample": 1.1}, "subsample=1.1: Input should be less than or equal to 1"),
        ("bert-intent", {"l2": []}, r"l2=\[\]: List should have at least 1 item"),
        ("bert-intent-precision", {"tune_bf16": "maybe"}, "tune_bf16=maybe: Input should be True, False or 'auto'"),
        ("bert-intent-precision", {"checkpoints": ["int9"]}, "unknown checkpoint 'int9'"),
    ],
)  # fmt: skip
def test_values_with_which_no_task_can_run_are_refused(
    name: str, changes: dict[str, Any], message: str
) -> None:
    config = registry.task(name)
    with pytest.raises(UsageError, match=message):
        task_of(config.entry).check(name, config.params | changes)


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"rte": 0.1}, "unknown parameter of mine 'rte'", "did you mean rate?"),
        ({"rate": None}, "mine: parameter rate=None: Input should be a valid number", "--set rate="),
        ({"names": "a"}, "mine: parameter names=a: Input should be a valid list", "--set names="),
        ({"cut": 1}, "mine: parameter cut=1: Input should be a valid boolean", "--set cut="),
    ],
)
def test_wrong_parameters_are_refused(changes: dict[str, Any], message: str, hint: str) -> None:
    values = {"rate": 1, "names": ["a"], "cut": False}
    assert Params.read("mine", values).rate == 1.0
    with pytest.raises(UsageError, match=message) as caught:
        Params.read("mine", values | changes)
    assert hint in caught.value.hint


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(UsageError, match="mine: parameter names is missing") as caught:
        Params.read("mine", {"rate": 1.0, "cut": True})
    assert caught.value.hint == "parameters: rate, names, cut"


def test_settings_are_kept_with_typed_parameters(tmp_path: Path) -> None:
    task = task_of(registry.task("booking").entry)
    params = registry.task("booking").params
    context = RunContext(
        "booking", "polars", "torch_eager", "fp32", "cpu", tmp_path, tmp_path, tmp_path, 0.5, 3, 2, params,
        workers=4, gpu_memory_bytes=5,
    )  # fmt: skip
    typed = task.typed(context)
    assert (typed.seed, typed.threads, typed.workers, typed.gpu_memory_bytes) == (3, 2, 4, 5)
    assert typed.params.lr == params["lr"]


@pytest.mark.parametrize(
    ("given", "installed", "folder"),
    [
        (True, True, "given"),
        (True, False, "given"),
        (False, True, "real"),
        (False, False, "set-scale0.5-seed1"),
    ],
)
def test_files_are_the_given_ones_else_installed_ones_else_generated(
    given: bool, installed: bool, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUZZER_DATA", str(tmp_path))
    for name in ("given", "real"):
        (tmp_path / name).mkdir()
    if installed:
        (tmp_path / "real" / "rows.csv").write_text("1\n")

    def generate(folder: Path, *, scale: float, seed: int, progress: Any) -> None:
        folder.mkdir()

    def check(folder: Path, progress: Any) -> Files:
        return Files(folder, "hash", {}, {}, "generated" if "scale" in folder.name else "official")

    source = DataSource("set", generate, check, installed=Path("real", "rows.csv"))
    cache = tmp_path / "cache"
    cache.mkdir()
    files = source.files(tmp_path / "given" if given else None, cache, 0.5, 1, silent)
    assert files.folder.name == folder


def test_a_sample_of_the_training_rows_has_a_folder_of_its_own(tmp_path: Path) -> None:
    asked = []

    def generate(folder: Path, **settings: Any) -> None:
        folder.mkdir()
        asked.append(settings.get("train_scale"))

    source = DataSource("set", generate, lambda folder, progress: Files(folder, "hash", {}))
    names = [
        source.files(None, tmp_path, 0.5, 1, silent, train_scale=train_scale).folder.name
        for train_scale in (None, 0.25, 0.25)
    ]
    assert names == ["set-scale0.5-seed1", "set-scale0.5-train0.25-seed1", "set-scale0.5-train0.25-seed1"]
    assert asked == [None, 0.25]

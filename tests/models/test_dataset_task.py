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

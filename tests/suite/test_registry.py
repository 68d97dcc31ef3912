"""The registry of tasks, models and data sets."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from buzzer import configs
from buzzer.engine import frames, infer
from buzzer.engine.infer import ENCODERS, NETWORKS, ONNX, TREES
from buzzer.errors import UsageError
from buzzer.suite import registry
from buzzer.suite.run.plan import TaskSelection, fit_run


def test_a_task_has_names_and_a_base() -> None:
    full, lite = registry.task("recsys2021-full"), registry.task("recsys2021-lite")
    assert lite.name == "recsys2021"
    assert full.entry == lite.entry
    assert full.params == lite.params | {
        key: full.params[key] for key in ("trees", "networks", "second", "rounds_1", "network_rows")
    }
    with pytest.raises(UsageError) as caught:
        registry.task("bookings")
    assert "did you mean booking?" in caught.value.hint


@pytest.mark.parametrize("task", registry.tasks().values(), ids=lambda task: task.name)
def test_a_task_names_only_existing_things(task: registry.TaskConfig) -> None:
    assert {*task.engines} <= {registry.NO_ENGINE, *registry.engines()}
    assert {part for name in task.backends for part in infer.split_backend(name)} <= {*registry.backends()}
    assert task.reference.engine in task.engines and task.reference.backend in task.backends
    assert registry.dataset_name(task.name) == task.dataset
    assert registry.card(task.name).startswith("# ")
    for backend in task.backends:
        parts = infer.split_backend(backend)
        assert any(infer.info(part).runs & {*task.kinds} for part in parts), backend


BROKEN = {
    "syntax": (
        "tasks/booking.yaml",
        "entry: {a",
        "tasks/booking.yaml: not YAML: while parsing a flow mapping",
    ),
    "list": ("tasks/booking.yaml", "[1]", "tasks/booking.yaml: not a mapping"),
    "missing": ("tasks/booking.yaml", "name: booking", "tasks/booking.yaml: summary: Field required"),
    "name": ("tasks/new.yaml", "base: booking", "tasks/new.yaml: has the name 'booking', not 'new'"),
    "base": ("tasks/new.yaml", "base: bookin", "tasks/new.yaml: base: unknown task 'bookin'"),
    "engine": (
        "tasks/new.yaml",
        "{base: booking, name: new, engines: [pandas, polrs]}",
        "tasks/new.yaml: engines: unknown engine 'polrs'",
    ),
    "model": ("models.yaml", "models: {mine: {summary: a}}", "models.yaml: mine: entry: Field required"),
    "models": ("models.yaml", "models: [", "models.yaml: not YAML: while parsing a flow node"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_descriptor_is_named_in_one_line(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, text, message = BROKEN[what]
    shutil.copytree(configs.FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(configs, "FOLDER", tmp_path)
    configs.load_yaml.cache_clear()
    try:
        with pytest.raises(UsageError) as caught:
            registry.built_in_tasks.__wrapped__()
            registry.models.__wrapped__()
    finally:
        configs.load_yaml.cache_clear()
    assert caught.value.message.startswith(f"{tmp_path}/{message}")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("model", registry.models().values(), ids=lambda model: model.name)
def test_the_first_backend_of_a_model_runs_its_kind(model: registry.ModelConfig) -> None:
    assert infer.runs(model.backends[0], model.kind)


@pytest.mark.parametrize(
    ("path", "kinds"), [("folder", {NETWORKS, ENCODERS}), ("model.onnx", {ONNX}), ("trees.ubj", {TREES})]
)
def test_every_backend_runs_the_models_of_its_kind(path: str, kinds: set[infer.Kind]) -> None:
    """A backend that `buzzer list` shows can be used, also on models that a user brings."""
    able = {name for name, backend in infer.BACKENDS.items() if backend.runs & kinds}
    assert able == {*registry.backends_of_path(path)} & {*infer.BACKENDS}


def test_descriptors_have_the_names_of_their_keys() -> None:
    assert all(name == engine.name for name, engine in frames.ENGINES.items())
    assert all(name == backend.name for name, backend in infer.BACKENDS.items())
    for engine in frames.ENGINES.values():
        twin = frames.info(frames.cpu_twin(engine.name))
        assert twin.device == "cpu"
    with pytest.raises(UsageError, match="unknown engine 'panda'"):
        frames.info("panda")
    with pytest.raises(UsageError, match="unknown data set 'bookings'"):
        registry.dataset("bookings")


def test_a_simulated_precision_is_a_precision_of_the_backend() -> None:
    for name in ("torch_eager", "onnxruntime"):
        assert {*infer.info(name).simulated} <= {*infer.load(name).PRECISIONS}
    assert infer.simulates("torch_eager", "int8") and not infer.simulates("onnxruntime", "int8")


def test_a_fit_on_a_cluster_has_an_engine_that_spans_it(choose: Callable[..., TaskSelection]) -> None:
    assert [name for name in frames.ENGINES if frames.on_cluster(name)] == ["polars-gpu"]
    fit = fit_run(choose(task=registry.task("recsys2021"), device="cuda", workers=2))
    assert (fit.engine, fit.workers) == ("polars-gpu", 2)

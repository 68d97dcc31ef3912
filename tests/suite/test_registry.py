"""The registry of tasks, models and data sets."""

from collections.abc import Callable

import pytest

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

"""Plug-ins: what entry points add, and how broken ones are reported. tests/test_adding.py installs a real plug-in."""

import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buzzer import plugins
from buzzer.engine import frames, infer
from buzzer.errors import UnsupportedError, UsageError
from buzzer.suite import registry
from buzzer.suite.bench import bench_runs, plan
from buzzer.suite.report.display import Quiet
from buzzer.suite.requests import BenchRequest, RunRequest
from buzzer.suite.run import fits, resolve, task_runs

ROOT = Path(__file__).resolve().parent.parent
Install = Callable[..., None]
CACHED: tuple[Any, ...] = (
    *(frames.plugin_engines, infer.plugin_backends, plugins.distributions, fits.code_hash),
    *(registry.tasks, registry.plugin_tasks, registry.models, registry.plugin_models),
    *(registry.places, registry.plugin_datasets),
)
ENGINE = """
from buzzer.engine.frames import EngineInfo
ENGINE = EngineInfo(name="swift", load="acme.engine:load", summary="a swift engine", device="cuda")
BIRD = EngineInfo(name="pandas", load="acme.engine:load", summary="another pandas")
"""
BACKEND = """
from buzzer.engine.infer import ENCODERS, NETWORKS, ONNX, TREES, BackendInfo
def backend(kind):
    return BackendInfo(name=kind, module="acme.missing", summary=kind, runs=frozenset({kind}))
networks, encoders, trees, onnx = map(backend, (NETWORKS, ENCODERS, TREES, ONNX))
"""
TASK = """
from pathlib import Path
from buzzer.suite.registry import TaskConfig
FIELDS = {
    "summary": "a task", "entry": "acme.work:TASK", "engines": ["pandas"], "backends": ["torch_eager"], "metric": "accuracy",
    "reference": {"engine": "pandas", "backend": "torch_eager"}, "tolerance": 0.0, "params": {"rare": 3},
}
CONFIG = TaskConfig(name="config", **FIELDS)
NAMED = FIELDS | {"name": "another"}
WRONG = FIELDS | {"engines": 7}
ALIAS = FIELDS | {"aliases": ["recsys2021-lite"]}
FILE = Path(__file__).with_name("task.yaml")
SYNTAX = Path(__file__).with_name("syntax.yaml")
MODEL = {"summary": "a model", "entry": "acme.work:TASK", "backends": ["torch_eagr"]}
class Odd:
    tolerance = FIELDS | {"tolerance": -1}
    no_number = FIELDS | {"tolerance": float("nan")}
    scale = FIELDS | {"scale": 0}
    relative = FIELDS | {"relative": {"int8": 0.0}}
    no_engines = FIELDS | {"engines": []}
    engine = FIELDS | {"engines": ["pandas", "polrs"]}
    backend = FIELDS | {"backends": ["torch_eager", "onnxruntime+forst"]}
    dataset = FIELDS | {"dataset": "bookings"}
    reference = FIELDS | {"reference": {"engine": "polars", "backend": "torch_eager"}}
    on = FIELDS | {"reference": {"engine": "pandas", "backend": "onnxruntime"}}
    truth = FIELDS | {"truth": "truth.csv"}
    base = {"base": "bookings"}
    params = FIELDS | {"base": "booking", "params": 7}
"""
# The columns of an unfinished flow mapping: PyYAML's message has four lines.
SYNTAX = "summary: a task\nreference: {engine: pandas\nmetric: accuracy\n"
YAML = "base: booking\nsummary: as booking\nentry: acme.work:TASK\nparams: {dim: 7}\n"


def clear() -> None:
    for cached in CACHED:
        cached.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme"]:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def install(tmp_path: Path, importable: Callable[[Mapping[str, str]], Path]) -> Iterator[Install]:
    """Puts the package `acme` and a distribution with these entry points on the path: group -> name -> value."""
    modules = {"__init__": "", "engine": ENGINE, "backend": BACKEND, "task": TASK, "work": "TASK = 1\n"}
    importable(
        {f"acme/{name}.py": text for name, text in modules.items()}
        | {"acme/task.yaml": YAML, "acme/syntax.yaml": SYNTAX}
    )

    def go(entries: Mapping[str, Mapping[str, str]], name: str = "acme-plug") -> None:
        facts = tmp_path / f"{name.replace('-', '_')}-1.2.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = [
            f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in named.items())
            for group, named in entries.items()
        ]
        (facts / "entry_points.txt").write_text("\n".join(lines))
        clear()

    yield go
    clear()


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Returns the warnings so far."""
    caplog.set_level(
        logging.WARNING, "buzzer"
    )  # an earlier test may have raised the level of the root logger
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_engine_is_offered_by_every_task_that_has_engines(install: Install) -> None:
    install({"buzzer.engines": {"swift": "acme.engine:ENGINE"}})
    assert "swift" in registry.engines()
    assert frames.info("swift").summary == "a swift engine"
    assert registry.task("booking").engines[-1] == "swift"
    assert registry.task("bert-intent").engines == ["none"]
    assert (frames.on_gpu("swift"), frames.on_gpu("cudf"), frames.on_gpu("no such")) == (True, True, False)
    assert frames.cpu_twin("swift") == "swift"
    assert registry.origins()["engines"] == {"swift": "acme-plug 1.2"}
    assert plugins.distributions() == ["acme-plug"]


def test_a_backend_is_offered_wherever_it_runs_a_kind_of_model(install: Install) -> None:
    names = ("networks", "encoders", "trees", "onnx")
    install({"buzzer.backends": {name: f"acme.backend:{name}" for name in names}})
    added = {task: set(names) & set(config.backends) for task, config in registry.tasks().items()}
    assert added["booking"] == {"networks"}
    assert (
        added["recsys2021"] == added["recsys2021-full"] == added["online-shoppers"] == {"networks", "trees"}
    )
    assert added["sigir-ecom-task1"] == added["complete-journey"] == {"networks", "encoders"}
    models = {name: set(names) & set(model.backends) for name, model in registry.models().items()}
    assert (models["bert-base"], models["gbdt"]) == ({"networks"}, {"trees"})
    assert infer.split_backend("trees") == ("torch_eager", "trees")
    assert infer.split_backend("networks") == ("networks", "xgboost")
    assert infer.split_backend("networks+trees") == ("networks", "trees")


def test_a_file_is_offered_to_backends_that_run_its_kind(install: Install, tmp_path: Path) -> None:
    install({"buzzer.backends": {"onnx": "acme.backend:onnx", "networks": "acme.backend:networks"}})
    (tmp_path / "net.onnx").write_bytes(b"")
    assert registry.model(str(tmp_path / "net.onnx")).backends[-2:] == ["tensorrt", "onnx"]
    assert registry.model(str(tmp_path)).backends[-1] == "networks"


def test_a_task_is_a_mapping_a_file_or_a_config(install: Install) -> None:
    entries = {"mapping": "acme.task:FIELDS", "config": "acme.task:CONFIG", "file": "acme.task:FILE"}
    install({"buzzer.tasks": entries})
    assert {*entries} <= registry.tasks().keys()
    for name in entries:
        task = registry.task(name)
        assert (task.name, task.entry) == (name, "acme.work:TASK")
    assert registry.task("file").params == registry.task("booking").params | {"dim": 7}
    assert registry.task("file").dataset == "booking"
    with pytest.raises(UsageError, match="task mapping has no data set"):
        registry.dataset("mapping")


BROKEN = [
    ("buzzer.engines", "swift", "acme.absent:ENGINE", "No module named 'acme.absent'"),
    ("buzzer.engines", "swift", "acme.engine:NOTHING", "has no attribute 'NOTHING'"),
    ("buzzer.engines", "swift", "acme.engine:EngineInfo", "is of type type, not EngineInfo"),
    ("buzzer.engines", "slow", "acme.engine:ENGINE", "has the name 'swift'"),
    ("buzzer.engines", "pandas", "acme.engine:BIRD", "buzzer has one with this name"),
    ("buzzer.backends", "trees", "acme.engine:ENGINE", "is of type EngineInfo, not BackendInfo"),
    ("buzzer.backends", "xgboost", "acme.backend:trees", "buzzer has one with this name"),
    ("buzzer.tasks", "booking", "acme.task:FIELDS", "buzzer has one with this name"),
    ("buzzer.tasks", "recsys2021-lite", "acme.task:FIELDS", "buzzer has one with this name"),
    ("buzzer.tasks", "mine", "acme.task:ALIAS", "its alias recsys2021-lite is the name of a built-in task"),
    ("buzzer.tasks", "mine", "acme.task:NAMED", "has the name 'another'"),
    ("buzzer.tasks", "mine", "acme.task:WRONG", "engines: Input should be a valid list"),
    ("buzzer.tasks", "mine", "acme.engine:EngineInfo", "acme.engine:EngineInfo: not a mapping"),
    ("buzzer.tasks", "mine", "acme.task:Odd.tolerance", "Odd.tolerance: tolerance: Input should be greater"),
    ("buzzer.tasks", "mine", "acme.task:Odd.no_number", "tolerance: Input should be a finite number"),
    ("buzzer.tasks", "mine", "acme.task:Odd.scale", "scale: Input should be greater than 0"),
    ("buzzer.tasks", "mine", "acme.task:Odd.relative", "relative.int8: Input should be greater than 0"),
    ("buzzer.tasks", "mine", "acme.task:Odd.no_engines", "engines: List should have at least 1 item"),
    ("buzzer.tasks", "mine", "acme.task:Odd.engine", "Odd.engine: engines: unknown engine 'polrs' (did you"),
    (
        "buzzer.tasks",
        "mine",
        "acme.task:Odd.backend",
        "backends: unknown backend 'forst' (did you mean forest",
    ),
    ("buzzer.tasks", "mine", "acme.task:Odd.dataset", "dataset: unknown data set 'bookings' (did you mean"),
    ("buzzer.tasks", "mine", "acme.task:Odd.reference", "reference: the task has no polars (it has: pandas)"),
    ("buzzer.tasks", "mine", "acme.task:Odd.on", "reference: the task has no onnxruntime"),
    ("buzzer.tasks", "mine", "acme.task:Odd.truth", "truth: the task has no submission or no dataset"),
    ("buzzer.tasks", "mine", "acme.task:Odd.base", "base: unknown task 'bookings' (did you mean booking?"),
    ("buzzer.tasks", "mine", "acme.task:Odd.params", "params: Input should be a valid dictionary"),
    ("buzzer.tasks", "mine", "acme.task:SYNTAX", "acme/syntax.yaml: not YAML: while parsing a flow mapping"),
    ("buzzer.models", "mine", "acme.task:MODEL", "task:MODEL: backends: unknown backend 'torch_eagr'"),
    ("buzzer.models", "gbdt", "acme.task:FIELDS", "buzzer has one with this name"),
    ("buzzer.models", "mine", "acme.task:FIELDS", "engines: Extra inputs are not permitted"),
    ("buzzer.datasets", "birds", "acme.absent", "no module acme.absent"),
    ("buzzer.datasets", "birds", "acme.engine", "card.md"),
    ("buzzer.datasets", "booking", "acme.engine", "buzzer has one with this name"),
]


@pytest.mark.parametrize(("group", "name", "value", "reason"), BROKEN)
def test_a_broken_plugin_is_left_out_with_a_warning(
    group: str, name: str, value: str, reason: str, install: Install, warned: Callable[[], list[str]]
) -> None:
    before = {kind: {*names()} for kind, names in everything().items()}
    install({group: {name: value}})
    assert {kind: {*names()} for kind, names in everything().items()} == before
    (warning,) = warned()
    kind = {"buzzer.datasets": "data set"}.get(group, group.removeprefix("buzzer.")[:-1])
    assert warning.startswith(f"warning: {kind} '{name}' of acme-plug 1.2 is left out: ")
    assert reason in warning
    assert "\n" not in warning


def everything() -> dict[str, Callable[[], Any]]:
    named = (registry.tasks, registry.engines, registry.backends, registry.models, registry.datasets)
    return {names.__name__: names for names in named}


def test_a_second_plugin_with_the_same_name_is_refused(
    install: Install, warned: Callable[[], list[str]]
) -> None:
    entries = {"buzzer.engines": {"swift": "acme.engine:ENGINE"}}
    install(entries)
    install(entries, "zzz-plug")
    assert registry.origins()["engines"] == {"swift": "acme-plug 1.2"}
    (warning,) = warned()
    assert "'swift' of zzz-plug 1.2 is left out: acme-plug 1.2 has one with this name" in warning


def test_a_plugin_that_cannot_be_loaded_is_unsupported(install: Install, tmp_path: Path) -> None:
    """The descriptor is valid, but the module that it names cannot be used."""
    install(
        {
            "buzzer.backends": {"trees": "acme.backend:trees"},
            "buzzer.datasets": {"birds": "acme.birds"},
        }
    )
    (tmp_path / "acme" / "birds.py").write_text("NAME = 'birds'\n")
    (tmp_path / "acme" / "card.md").write_text("# Birds\n")
    with pytest.raises(
        UnsupportedError, match=r"backend trees cannot be loaded from acme\.missing: No module"
    ):
        infer.load("trees")
    assert registry.card("birds") == "# Birds\n"
    with pytest.raises(UnsupportedError, match=r"data set birds has no generate in acme\.birds"):
        registry.dataset("birds")


def test_a_data_set_has_the_name_of_its_entry_point(install: Install, tmp_path: Path) -> None:
    install({"buzzer.datasets": {"birds": "acme.birds"}})
    functions = "".join(f"def {name}(): ...\n" for name in ("generate", "check", "score", "convert"))
    (tmp_path / "acme" / "birds.py").write_text(f"NAME = 'bees'\n{functions}")
    (tmp_path / "acme" / "card.md").write_text("# Birds\n")
    clear()
    with pytest.raises(UnsupportedError, match=r"data set birds has the NAME 'bees' in acme\.birds"):
        registry.dataset("birds")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("acme.wrk:TASK", "cannot be loaded from acme.wrk:TASK: No module named 'acme.wrk'"),
        ("acme.work:TASKS", "module 'acme.work' has no attribute 'TASKS'"),
        ("acme.work", "cannot be loaded from 'acme.work'"),
        ("acme.work:", "cannot be loaded from 'acme.work:'"),
        (":TASK", "cannot be loaded from ':TASK'"),
    ],
)
def test_a_wrong_entry_is_named(install: Install, entry: str, reason: str) -> None:
    """Of a task and of a model of `buzzer bench`: before a process is started."""
    install({})
    task, request = registry.task("booking"), BenchRequest("gbdt", batches=1)
    selection = resolve.selection(RunRequest("booking"))
    (bench,) = plan.selections(request)
    tried = [
        lambda: task_runs.prepare(
            replace(selection, task=task.model_copy(update={"entry": entry})), None, Quiet()
        ),
        lambda: bench_runs.check([replace(bench, model=bench.model.model_copy(update={"entry": entry}))]),
    ]
    for name, use in zip(("booking", "gbdt"), tried, strict=True):
        with pytest.raises(UnsupportedError) as caught:
            use()
        assert caught.value.message.startswith(f"{name}'s entry cannot be loaded from ")
        assert reason in caught.value.message


def test_an_engine_without_an_attribute_is_named(install: Install, tmp_path: Path) -> None:
    install({"buzzer.engines": {"swift": "acme.engine:ENGINE"}})
    (tmp_path / "acme" / "engine.py").write_text(
        "from buzzer.engine.frames import EngineInfo\nENGINE = EngineInfo('swift', 'acme.engine', 'swift')\n"
    )
    clear()
    with pytest.raises(UnsupportedError, match=r"engine swift cannot be loaded from 'acme\.engine'"):
        frames.load("swift")


def test_an_unknown_precision_of_a_backend_is_refused(install: Install, tmp_path: Path) -> None:
    install({"buzzer.backends": {"trees": "acme.backend:trees"}})
    (tmp_path / "acme" / "missing.py").write_text("PRECISIONS = ('fp32', 'int3')\n")
    with pytest.raises(UnsupportedError, match="backend trees has an unknown precision: int3"):
        infer.load("trees")


def test_a_device_that_a_backend_does_not_run_on_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="does not run on tpu"):
        infer.prepare(None, backend="torch_eager", example={}, device="tpu")


def test_an_edit_of_a_plugin_makes_another_fit(install: Install, tmp_path: Path) -> None:
    """The fit of a plug-in's task depends on the sources of its own package, and on those of buzzer that it imports."""
    install({"buzzer.tasks": {"mine": "acme.task:FIELDS"}})
    (tmp_path / "acme" / "work.py").write_text(
        "from acme import near\nfrom buzzer.models import blend\nTASK = 1\n"
    )
    (tmp_path / "acme" / "near.py").write_text("")
    entry = registry.task("mine").entry
    assert {"acme", "acme.work", "acme.near", "buzzer.models.blend"} <= fits.sources(entry).keys()
    before = fits.code_hash(entry)
    (tmp_path / "acme" / "near.py").write_text("# edited\n")
    fits.code_hash.cache_clear()
    assert fits.code_hash(entry) != before


def test_a_broken_plugin_breaks_no_command(install: Install, tmp_path: Path) -> None:
    """Every command prints one warning on stderr; stdout is the same as without the plug-in."""
    install({"buzzer.engines": {"swift": "acme.absent:ENGINE"}})
    for arguments in (["list", "--json"], ["run", "booking", "--dry-run", "--json"]):
        done, without = (
            subprocess.run(
                [sys.executable, "-m", "buzzer", *arguments],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": path},
                capture_output=True,
                text=True,
                check=True,
            )
            for path in (f"{tmp_path}{os.pathsep}{ROOT}", str(ROOT))
        )
        assert done.stdout == without.stdout
        (line,) = done.stderr.splitlines()
        assert line.startswith("warning: engine 'swift' of acme-plug 1.2 is left out: ModuleNotFoundError")

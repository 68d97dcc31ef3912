"""The layers of the project: a module imports only from layers below its own, also inside functions.

Each line of LAYERS is one layer, the highest first. Units of one layer are siblings: they may import each other, unless
SEPARATE says otherwise, but not in a cycle. A unit is a package or a module directly below `suite`, `engine`, `models`
or `datasets`.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOTS = ("suite", "models", "engine", "datasets", "configs")
LAYERS = {
    "": ["suite", "models", "datasets engine", "configs"],
    "suite": [
        "gpu",
        "cli",
        "api",
        "report",
        "bench",
        "analysis run",
        "records",
        "budget config_file escape registry requests words",
    ],
    "engine": ["infer.backends", "fused", "infer kernels", "cluster device faults frames quant xgb"],
    "models": [
        "tree_file",
        "bert booking complete_journey online_shoppers open_bandit recsys2021 sigir_ecom",
        "attention blend boosting by_model dataset_task epochs held_out inputs_file kept_pieces onnx_file ranges weights work",
        "api",
    ],
    "datasets": [
        "booking clinc150 complete_journey online_shoppers open_bandit recsys2021 sigir_ecom",
        "checked contract draws files lines pieces strict_json unfinished workers",
    ],
}
# Pairs that a layer's order alone does not forbid: the first must not import the second.
SEPARATE = {
    ("datasets", "engine"),
    ("engine", "datasets"),
    ("engine.infer", "engine.kernels"),
    ("engine.kernels", "engine.infer"),
}


def module_paths() -> dict[str, Path]:
    """All modules below the root packages, by dotted name without the leading `buzzer.`."""
    paths = {}
    for path in (path for root in ROOTS for path in (ROOT / root).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        paths[name.removesuffix(".__init__")] = path
    return paths


def imports_of(path: Path, modules: dict[str, Path]) -> set[str]:
    """The project's modules that a file imports anywhere, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("buzzer.") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            package = node.module.removeprefix("buzzer.")
            children = {f"{package}.{alias.name}" for alias in node.names}
            names |= children if children <= modules.keys() else children | {package}
    return names & modules.keys()


MODULES = module_paths()
IMPORTS = {name: imports_of(path, MODULES) - {name} for name, path in MODULES.items()}
RANKS = {
    f"{root}.{unit}".strip("."): (root, rank)
    for root, layers in LAYERS.items()
    for rank, layer in enumerate(layers)
    for unit in layer.split()
}


def unit_of(module: str) -> str:
    """The unit that a module belongs to: the longest of its prefixes that has a layer."""
    parts = module.split(".")
    prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next(prefix for prefix in prefixes if prefix in RANKS)


def allowed(source: str, target: str) -> bool:
    """Whether unit `source` may import unit `target`."""
    roots = source.split(".")[0], target.split(".")[0]
    if (source, target) in SEPARATE or roots in SEPARATE:
        return False
    if roots == ("suite", "models"):
        return target == "models.api"  # tasks and models are found by their names in configs/
    pair = (source, target) if roots[0] == roots[1] else roots
    return RANKS[pair[0]][1] <= RANKS[pair[1]][1]


LOOSE = {name for name in MODULES if "." in name and unit_of(name) in ROOTS}


def unit_imports() -> set[tuple[str, str]]:
    """All imports between different units. A module without a layer has no unit."""
    pairs = {
        (unit_of(source), unit_of(target))
        for source, targets in IMPORTS.items()
        for target in targets
        if not {source, target} & LOOSE
    }
    return {(source, target) for source, target in pairs if source != target}


def test_every_module_has_a_layer() -> None:
    assert not LOOSE, "give each of these a layer in LAYERS"


def test_imports_go_down() -> None:
    breaches = {pair for pair in unit_imports() if not allowed(*pair)}
    assert not breaches


def graph_of_units() -> dict[str, set[str]]:
    """The units that each unit imports."""
    graph: dict[str, set[str]] = {}
    for source, target in unit_imports():
        graph.setdefault(source, set()).add(target)
    return graph


@pytest.mark.parametrize("graph", [graph_of_units(), IMPORTS], ids=["units", "modules"])
def test_imports_have_no_cycle(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_shared_modules_import_no_package() -> None:
    """`buzzer.errors`, `buzzer.caches` and `buzzer.locks` are below all layers."""
    for path in (ROOT / "buzzer").glob("*.py"):
        if path.name not in ("__init__.py", "__main__.py"):
            assert not imports_of(path, MODULES), path.name

"""Which parts of the engine may import which others."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ENGINE = Path(__file__).parents[2] / "engine"
# A part of the engine -> the parts that it must not import.
FORBIDDEN = {
    "kernels": ("infer", "fused", "frames", "quant"),
    "fused": ("infer.backends", "infer.onnx", "frames", "quant"),
    "infer/onnx": ("infer.backends", "fused", "kernels", "frames"),
    "frames": ("infer", "fused", "kernels", "quant"),
    "quant": ("infer", "fused", "kernels", "frames"),
}


def imported(file: Path) -> Iterator[str]:
    """The engine's modules that a file imports, without the prefix "buzzer.engine."."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (
            name.removeprefix("buzzer.engine.") for name in names if name.startswith("buzzer.engine.")
        )


def is_in(module: str, part: str) -> bool:
    return module == part or module.startswith(f"{part}.")


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_parts_import_only_lower_ones(folder: str) -> None:
    for file in (ENGINE / folder).rglob("*.py"):
        wrong = [m for m in imported(file) if any(is_in(m, part) for part in FORBIDDEN[folder])]
        assert not wrong, file


def test_no_backend_imports_another() -> None:
    for file in (ENGINE / "infer" / "backends").glob("*.py"):
        assert not [module for module in imported(file) if is_in(module, "infer.backends")], file


def test_sessions_do_not_import_backends() -> None:
    for file in (ENGINE / "infer").glob("*.py"):
        assert not [module for module in imported(file) if is_in(module, "infer.backends")], file

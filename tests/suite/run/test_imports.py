"""The times of imports: each package without those that it imports, and modules that are not changed by being timed."""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from buzzer.models.api.context import Result
from buzzer.suite.run.imports import Imports
from buzzer.suite.run.worker import at_score

SOURCES = {
    "slow_a/__init__.py": "import ticks; ticks.tick(2); import slow_b; ticks.tick(1)",
    "slow_a/later.py": "import ticks; ticks.tick(4); LOADER = __spec__.loader",
    "slow_b/__init__.py": "import ticks; ticks.tick(8); import slow_b.part; import slow_a.base",
    "slow_b/part.py": "import ticks; ticks.tick(16)",
    "slow_a/base.py": "import ticks; ticks.tick(32)",
    "slow_c.py": "import ticks; ticks.tick(0.01)",
    "slow_d.py": "import ticks; ticks.tick(1); raise ValueError('broken')",
    "ticks.py": "seconds = 0.0\ndef tick(s):\n    global seconds\n    seconds += s",
}


@pytest.fixture
def imports(importable: Callable[[Mapping[str, str]], Path]) -> Iterator[Imports]:
    """Imports with a clock that only the modules of SOURCES move on."""
    importable(SOURCES)
    clock: Any = importlib.import_module("ticks")
    timer = Imports(lambda: clock.seconds)
    yield timer.start()
    timer.stop()
    for name in [name for name in sys.modules if name.startswith(("slow_", "ticks"))]:
        del sys.modules[name]


def named(seconds: Mapping[str, float]) -> dict[str, float]:
    return {package: s for package, s in seconds.items() if package.startswith("slow_")}


def test_a_package_counts_without_those_that_it_imports(imports: Imports) -> None:
    """slow_a takes 2 + 1 s itself and 32 in a module that slow_b imports, slow_b 8 + 16."""
    importlib.import_module("slow_a")
    assert named(imports.seconds) == {"slow_a": 35.0, "slow_b": 24.0}
    importlib.import_module("slow_a.later")
    importlib.import_module("slow_a.later")
    assert list(named(imports.seconds).items()) == [("slow_a", 39.0), ("slow_b", 24.0)]  # the longest first


def test_short_imports_are_left_out_and_failed_ones_count(imports: Imports) -> None:
    importlib.import_module("slow_c")
    with pytest.raises(ValueError, match="broken"):
        importlib.import_module("slow_d")
    with pytest.raises(ModuleNotFoundError, match="slow_e"):
        importlib.import_module("slow_e")
    assert named(imports.seconds) == {"slow_d": 1.0}


def test_modules_keep_their_own_loaders(imports: Imports) -> None:
    module: Any = importlib.import_module("slow_a.later")
    plain = type(importlib.import_module("ticks").__loader__)
    assert {type(module.__loader__), type(module.__spec__.loader), type(module.LOADER)} == {plain}
    spec = importlib.util.find_spec("slow_c")  # found, not imported
    assert spec is not None and spec.loader is not None
    assert spec.loader.get_source("slow_c") == SOURCES["slow_c.py"]  # type: ignore[attr-defined]
    assert named(imports.seconds) == {"slow_a": 39.0, "slow_b": 24.0}


def test_imports_while_scoring_are_not_measured(imports: Imports) -> None:
    def steps() -> Any:
        yield "load"
        importlib.import_module("slow_b")
        yield "score"
        importlib.import_module("slow_c")
        importlib.import_module("slow_a.later")
        return Result({}, 1)

    assert [*at_score(steps(), imports.stop)] == ["load", "score"]
    assert named(imports.seconds) == {"slow_b": 24.0, "slow_a": 35.0}

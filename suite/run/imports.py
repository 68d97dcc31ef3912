"""Measures how long the worker imports packages. In a small job that is most of the wall time."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, cast

LEAST_S = 0.02  # packages that take less are left out


class Imports:
    """The seconds that each package takes to import, without the packages that it imports itself.

    It is a finder that stands before the others and times the loaders that they find. Looking for a file is not counted. Finder and loader
    lack the base classes of `importlib.abc`, whose import takes 5 ms.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._seconds: dict[str, float] = {}
        self._local = threading.local()

    def start(self) -> "Imports":
        """Measure from now on."""
        sys.meta_path.insert(0, self)
        return self

    def stop(self) -> None:
        """Measure no further imports."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    @property
    def seconds(self) -> dict[str, float]:
        """Package -> seconds, the longest first."""
        longest = sorted(self._seconds.items(), key=lambda item: -item[1])
        return {package: round(seconds, 3) for package, seconds in longest if seconds >= LEAST_S}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders find, with a loader that is timed. None inside an import of the same package."""
        package = name.partition(".")[0]
        running = self._running()
        if running and running[-1] == package:
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = cast(Any, Timed(spec.loader, lambda: self._timed(package)))
        return spec

    def _running(self) -> list[str]:
        """The packages that this thread is importing, each by the one before it."""
        if not hasattr(self._local, "running"):
            self._local.running = []
        running: list[str] = self._local.running
        return running

    @contextmanager
    def _timed(self, package: str) -> Iterator[None]:
        running, begin = self._running(), self._now()
        running.append(package)
        try:
            yield
        finally:
            spent = self._now() - begin
            running.pop()
            self._add(package, spent)
            if running:
                self._add(running[-1], -spent)

    def _add(self, package: str, seconds: float) -> None:
        self._seconds[package] = self._seconds.get(package, 0.0) + seconds


class Timed:
    """A loader that is timed. While a module is executed, and afterwards, the module has its own loader."""

    def __init__(self, loader: Any, timed: Callable[[], Any]) -> None:
        self._loader, self._timed = loader, timed

    def __getattr__(self, name: str) -> Any:
        """Everything else that the loader offers."""
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The loader's own: for a compiled module it reads the library."""
        with self._timed():
            return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """The loader's own."""
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        with self._timed():
            self._loader.exec_module(module)

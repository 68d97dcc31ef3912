"""The name of a fit in the cache, which changes with everything that the fit depends on.

One fit serves all engines and backends of its task: their scores must agree. It depends on the device and cluster that trained it, because
sums of floats in another order give another model. Versions of libraries are not part of the name: a fit may be copied to another machine.
"""

import ast
import functools
import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import buzzer
from buzzer.errors import DataError
from buzzer.models.api.context import Data
from buzzer.suite.run import manifest
from buzzer.suite.run.plan import Run

OURS = "buzzer"


def fit_id(run: Run, data: Data) -> str:
    """Name of the fit that a run makes or uses: the device that trains it, and 16 hex digits of a hash of all that it depends on."""
    device, cluster = run.fitted_on
    files = data.fit_fingerprint or data.fingerprint
    task, params = run.task, run.task.params
    facts = [task.name, params, contents(params), files, run.seed, cluster, code_hash(task.entry)]
    return f"{device}-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]}"


def folder(run: Run, data: Data, cache: Path) -> Path:
    """The folder of the files that `fit` saves."""
    return cache / "fits" / f"{run.task.name}-{fit_id(run, data)}"


def contents(params: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """sha256 of the files below each parameter that is an absolute path (of weights, for example)."""
    paths = {name: Path(value) for name, value in params.items() if str(value).startswith(os.sep)}
    return {name: manifest.digests(path) for name, path in paths.items() if path.is_dir()}


@functools.cache
def code_hash(entry: str) -> str:
    """sha256 over the sources that the task's entry imports. A later change of the sources counts in the next process."""
    digest = hashlib.sha256()
    for name, source in sources(entry).items():
        digest.update(f"{name} {hashlib.sha256(source.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def sources(entry: str) -> dict[str, Path]:
    """Modules that `module:attr` imports, at any depth and inside functions too, of buzzer and of the entry's own top package.

    Found in the source text; nothing is imported. Raises DataError for a module that does not exist or cannot be parsed.
    """
    module = entry.partition(":")[0]
    if source_of(module) is None:
        raise DataError(f"{entry}: no such module")
    tops, paths, seen, todo = {OURS, module.partition(".")[0]}, dict[str, Path](), set[str](), [module]
    while todo:
        for name in packages(todo.pop()):
            if name in seen:
                continue
            seen.add(name)
            if (source := source_of(name)) is not None:
                paths[name] = source
                if name == OURS:  # it offers the suite to users; no task runs what it imports
                    continue
                todo += [n for n in names_of(name, source) if n.partition(".")[0] in tops]
    return dict(sorted(paths.items()))


def is_name(text: str) -> bool:
    """Whether a text may be the dotted name of a module."""
    return all(part.isidentifier() for part in text.split("."))


def names_of(module: str, source: Path) -> tuple[str, ...]:
    """Names in a source file that may be modules (`names_in`). Raises DataError for a file that cannot be parsed."""
    try:
        return names_in(module, source.name == "__init__.py", source.read_bytes())
    except SyntaxError as error:
        raise DataError(f"{source}, line {error.lineno}: {error.msg}") from error


def packages(name: str) -> list[str]:
    """The modules that are imported for `a.b.c`: `a`, `a.b` and `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def source_of(name: str) -> Path | None:
    """The file of a module; None for a name that is none (a class, for example, or a folder without `__init__.py`)."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    if not rest:
        return Path(spec.origin) if spec is not None and spec.origin is not None else None
    bases = [Path(place, *rest) for place in (spec and spec.submodule_search_locations) or ()]
    paths = [path for base in bases for path in (base / "__init__.py", base.with_name(f"{base.name}.py"))]
    return next((path for path in paths if path.is_file()), None)


@functools.cache
def names_in(module: str, is_package: bool, text: bytes) -> tuple[str, ...]:
    """Names in a source that may be modules: imported ones, and strings such as "buzzer.engine.frames.lazy"."""
    candidates, package = list[str](), module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                candidates += [alias.name for alias in names]
            case ast.ImportFrom(module=origin, names=names, level=level):
                above = package.split(".")[: 1 - level or None] if level else []
                base = ".".join([*above, *([origin] if origin else [])])
                candidates += [base, *(f"{base}.{alias.name}" for alias in names)]
            case ast.Constant(value=str(value)):
                candidates.append(value.partition(":")[0])
            case ast.JoinedStr(values=parts):
                candidates += with_prefix(prefix(parts, module))
    return tuple(name for name in candidates if is_name(name))


def prefix(parts: list[ast.expr], module: str) -> str:
    """The beginning of an f-string that does not depend on values."""
    text = ""
    for part in parts:
        match part:
            case ast.Constant(value=str(literal)):
                text += literal
            case ast.FormattedValue(value=ast.Name(id="__name__")):
                text += module
            case _:
                break
    return text


def with_prefix(text: str) -> list[str]:
    """All modules of the package in a prefix: of "buzzer.engine.frames.", for f"buzzer.engine.frames.{engine}"."""
    package = text.rpartition(".")[0]
    if not package.startswith(f"{OURS}.") or not is_name(package):
        return []
    folders = [Path(place, *package.split(".")[1:]) for place in buzzer.__path__]
    return [f"{package}.{path.stem}" for folder in folders for path in folder.glob("[!_]*.py")]

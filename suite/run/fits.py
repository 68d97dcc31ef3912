"""The name of a fit in the cache. It changes when anything changes that the fit depends on.

All engines and backends of a task use the same fit, and their scores must agree. A fit depends on the device and cluster that trained it,
because floats that are summed in another order give another model. Library versions are not part of the name, so that a fit can be copied
to another machine.
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
from buzzer import manifest
from buzzer.errors import DataError
from buzzer.models.api.context import Data
from buzzer.suite.run.plan import Run

OURS = "buzzer"


def fit_id(run: Run, data: Data) -> str:
    """Name of the fit that a run makes or uses: the device that trains it, and 16 hex digits of a hash of everything it depends on."""
    device, cluster = run.fitted_on
    files = data.fit_fingerprint or data.fingerprint
    task, params = run.task, run.task.params
    facts = [task.name, params, contents(params), files, run.seed, cluster, code_hash(task.entry)]
    return f"{device}-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]}"


def folder(run: Run, data: Data, cache: Path) -> Path:
    """The cache folder for the files that `fit` saves."""
    return cache / "fits" / f"{run.task.name}-{fit_id(run, data)}"


def contents(params: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """For each parameter that is the absolute path of a folder (of weights, for example): the sha256 of each file in it."""
    paths = {name: Path(value) for name, value in params.items() if str(value).startswith(os.sep)}
    return {name: manifest.digests(path) for name, path in paths.items() if path.is_dir()}


@functools.cache
def code_hash(entry: str) -> str:
    """sha256 of the source files that the task's entry imports. Computed once per process: a later edit counts in the next process."""
    digest = hashlib.sha256()
    for name, source in sources(entry).items():
        digest.update(f"{name} {hashlib.sha256(source.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def sources(entry: str) -> dict[str, Path]:
    """The source file of each module that `module:attr` imports, directly or indirectly, at the top or inside functions.

    Only modules of buzzer and of the entry's own top-level package count. They are found by parsing; nothing is imported. Raises
    DataError for a module that does not exist or cannot be parsed.
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
                if name == OURS:  # it imports the suite for users; no task depends on that
                    continue
                todo += [n for n in names_of(name, source) if n.partition(".")[0] in tops]
    return dict(sorted(paths.items()))


def is_name(text: str) -> bool:
    """Whether a text has the form of a dotted module name."""
    return all(part.isidentifier() for part in text.split("."))


def names_of(module: str, source: Path) -> tuple[str, ...]:
    """Names in a source file that may be modules (see `names_in`). Raises DataError for a file that cannot be parsed."""
    try:
        return names_in(module, source.name == "__init__.py", source.read_bytes())
    except SyntaxError as error:
        raise DataError(f"{source}, line {error.lineno}: {error.msg}") from error


def packages(name: str) -> list[str]:
    """The modules that Python imports for `a.b.c`: `a`, `a.b` and `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def source_of(name: str) -> Path | None:
    """The source file of a module; None for any other name (of a class, for example, or of a folder without `__init__.py`)."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    if not rest:
        return Path(spec.origin) if spec is not None and spec.origin is not None else None
    bases = [Path(place, *rest) for place in (spec and spec.submodule_search_locations) or ()]
    paths = [path for base in bases for path in (base / "__init__.py", base.with_name(f"{base.name}.py"))]
    return next((path for path in paths if path.is_file()), None)


@functools.cache
def names_in(module: str, is_package: bool, text: bytes) -> tuple[str, ...]:
    """Names in a source file that may be modules: imported names, and strings such as "buzzer.engine.frames.lazy"."""
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
    """The constant beginning of an f-string."""
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
    """All modules of the package that a prefix names: for f"buzzer.engine.frames.{engine}", those of `buzzer.engine.frames`."""
    package = text.rpartition(".")[0]
    if not package.startswith(f"{OURS}.") or not is_name(package):
        return []
    folders = [Path(place, *package.split(".")[1:]) for place in buzzer.__path__]
    return [f"{package}.{path.stem}" for folder in folders for path in folder.glob("[!_]*.py")]

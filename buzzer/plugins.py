"""Plug-ins: what other distributions add to buzzer by the entry points in their pyproject.toml.

| group | an entry point names |
| --- | --- |
| `buzzer.tasks` | a task: the path of a YAML file, a mapping, or a `TaskConfig` |
| `buzzer.engines` | an `EngineInfo` |
| `buzzer.backends` | a `BackendInfo` |
| `buzzer.datasets` | a module with `NAME`, `generate`, `check`, `score`, `convert`, and a file `card.md` next to it |
| `buzzer.models` | a model of `buzzer bench`: the path of a YAML file, a mapping, or a `ModelConfig` |

An entry point that cannot be used is left out, with one warning on stderr. Everything else still works.
"""

import importlib
import logging
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, Generic, Literal, TypeVar

from buzzer import extras
from buzzer.errors import BuzzerError, UnsupportedError

Group = Literal["buzzer.tasks", "buzzer.engines", "buzzer.backends", "buzzer.datasets", "buzzer.models"]
GROUPS: tuple[Group, ...] = (
    "buzzer.tasks",
    "buzzer.engines",
    "buzzer.backends",
    "buzzer.datasets",
    "buzzer.models",
)
REFERENCE = re.compile(r"\w+(\.\w+)*:\w+")  # module:attribute
T = TypeVar("T")

logger = logging.getLogger("buzzer")


@dataclass(frozen=True)
class Plugin(Generic[T]):
    """One usable entry point."""

    value: T
    distribution: str  # name and version, such as "acme-buzzer 0.1.0"


def load(
    group: Group, make: Callable[[metadata.EntryPoint], T], taken: Collection[str]
) -> dict[str, Plugin[T]]:
    """The plug-ins of a group by name. `make` turns an entry point into its value.

    An entry point is left out with a warning that names its distribution if `make` raises, if its name is in `taken`, or if another
    plug-in has the same name.
    """
    plugins: dict[str, Plugin[T]] = {}
    entries = [(distribution_of(entry), entry) for entry in metadata.entry_points(group=group)]
    for distribution, entry in sorted(entries, key=lambda pair: (pair[1].name, pair[0])):
        try:
            check_name(entry.name, taken, plugins)
            plugins[entry.name] = Plugin(make(entry), distribution)
        except Exception as error:  # noqa: BLE001  code of others may raise anything, and must not end this command
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, BuzzerError):
                reason = f"{error.message} ({error.hint})" if error.hint else error.message
            logger.warning(
                "warning: %s %r of %s is left out: %s",
                kind_of(group),
                entry.name,
                distribution,
                " ".join(reason.split()),
            )
    return plugins


def check_name(name: str, taken: Collection[str], plugins: dict[str, Plugin[T]]) -> None:
    """Raises UnsupportedError for a name that is already used."""
    if name in taken:
        raise UnsupportedError("buzzer has one with this name; rename the entry point")
    if name in plugins:
        raise UnsupportedError(
            f"{plugins[name].distribution} has one with this name; uninstall one of the two"
        )


def described(kind: type[T], name: Callable[[T], str]) -> Callable[[metadata.EntryPoint], T]:
    """The function `make` for `load`. It returns the descriptor that an entry point names: a `kind` with the name of the entry point."""

    def make(entry: metadata.EntryPoint) -> T:
        value = entry.load()
        if not isinstance(value, kind):
            raise UnsupportedError(f"{entry.value} is of type {type(value).__name__}, not {kind.__name__}")
        if name(value) != entry.name:
            raise UnsupportedError(f"{entry.value} has the name {name(value)!r}")
        return value

    return make


def kind_of(group: Group) -> str:
    """What messages call an entry point of a group, such as "engine"."""
    return {"buzzer.datasets": "data set"}.get(group, group.removeprefix("buzzer.").removesuffix("s"))


def distribution_of(entry: metadata.EntryPoint) -> str:
    """Name and version of the distribution that has the entry point."""
    return "an unnamed distribution" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


@cache
def distributions() -> list[str]:
    """Names of the distributions that have an entry point in one of GROUPS. Does not import them."""
    entries = [entry for group in GROUPS for entry in metadata.entry_points(group=group)]
    return sorted({entry.dist.name for entry in entries if entry.dist is not None})


def resolve(reference: str, what: str) -> Any:
    """The object that `module:attr` names.

    `what` is for the message, such as "engine acme". Raises UnsupportedError for a text of another form, and if the module cannot be
    imported or lacks the attribute.
    """
    if not REFERENCE.fullmatch(reference):
        raise UnsupportedError(f"{what} cannot be loaded from {reference!r}", "write it as module:attribute")
    name, _, attribute = reference.partition(":")
    with _explained(reference, what):
        return getattr(importlib.import_module(name), attribute)


def module(name: str, what: str) -> Any:
    """The module of this name. Raises UnsupportedError, as `resolve`, if it cannot be imported."""
    with _explained(name, what):
        return importlib.import_module(name)


@contextmanager
def _explained(reference: str, what: str) -> Iterator[None]:
    """Raises UnsupportedError for a failed import."""
    try:
        yield
    except (ImportError, AttributeError) as error:
        hint = extras.hint(error.name) if isinstance(error, ModuleNotFoundError) else ""
        raise UnsupportedError(f"{what} cannot be loaded from {reference}: {error}", hint) from error

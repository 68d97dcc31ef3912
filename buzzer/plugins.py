"""What other distributions add to buzzer: the entry points of their pyproject.toml.

| group | an entry point names |
| --- | --- |
| `buzzer.tasks` | a task: the path of a YAML file, a mapping, or a `TaskConfig` |
| `buzzer.engines` | an `EngineInfo` |
| `buzzer.backends` | a `BackendInfo` |
| `buzzer.datasets` | a module with `NAME`, `generate`, `check`, `score`, `convert`, and a `card.md` beside it |
| `buzzer.models` | a model of `buzzer bench`: the path of a YAML file, a mapping, or a `ModelConfig` |

An entry point that cannot be used is left out, with one warning on stderr; what is built in and other plug-ins go on working.
"""

import importlib
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, Generic, Literal, TypeVar

from buzzer.errors import BuzzerError, UnsupportedError

Group = Literal["buzzer.tasks", "buzzer.engines", "buzzer.backends", "buzzer.datasets", "buzzer.models"]
GROUPS: tuple[Group, ...] = (
    "buzzer.tasks",
    "buzzer.engines",
    "buzzer.backends",
    "buzzer.datasets",
    "buzzer.models",
)
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
    """The entry points of a group by name, each as `make` turns it into a value.

    One for which `make` raises, or whose name is among `taken` or another plug-in's, is left out with a warning that names its
    distribution.
    """
    plugins: dict[str, Plugin[T]] = {}
    entries = [(distribution_of(entry), entry) for entry in metadata.entry_points(group=group)]
    for distribution, entry in sorted(entries, key=lambda pair: (pair[1].name, pair[0])):
        try:
            check_name(entry.name, taken, plugins)
            plugins[entry.name] = Plugin(make(entry), distribution)
        except Exception as error:  # noqa: BLE001  another's code may raise anything, and must not end this command
            reason = error.message if isinstance(error, BuzzerError) else f"{type(error).__name__}: {error}"
            logger.warning(
                "warning: %s %r of %s is left out: %s", kind_of(group), entry.name, distribution, reason
            )
    return plugins


def check_name(name: str, taken: Collection[str], plugins: dict[str, Plugin[T]]) -> None:
    """Raises UnsupportedError for a name that is in use."""
    if name in taken:
        raise UnsupportedError("buzzer has one of that name; rename the entry point")
    if name in plugins:
        raise UnsupportedError(f"{plugins[name].distribution} has one of that name; uninstall one of the two")


def described(kind: type[T], name: Callable[[T], str]) -> Callable[[metadata.EntryPoint], T]:
    """A `make` for `load`: the descriptor that an entry point names, which must be a `kind` of the entry point's name."""

    def make(entry: metadata.EntryPoint) -> T:
        value = entry.load()
        if not isinstance(value, kind):
            raise UnsupportedError(f"{entry.value} is of type {type(value).__name__}, not {kind.__name__}")
        if name(value) != entry.name:
            raise UnsupportedError(f"{entry.value} calls itself {name(value)!r}")
        return value

    return make


def kind_of(group: Group) -> str:
    """What an entry point of a group is, for messages: "engine", say."""
    return {"buzzer.datasets": "data set"}.get(group, group.removeprefix("buzzer.").removesuffix("s"))


def distribution_of(entry: metadata.EntryPoint) -> str:
    """Name and version of the distribution that has the entry point."""
    return "an unnamed distribution" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


@cache
def distributions() -> list[str]:
    """Names of the distributions that have an entry point in one of GROUPS; imports nothing of theirs."""
    entries = [entry for group in GROUPS for entry in metadata.entry_points(group=group)]
    return sorted({entry.dist.name for entry in entries if entry.dist is not None})


def resolve(reference: str, what: str) -> Any:
    """The object that `module:attr` names, or the module where there is no `:attr`.

    what: such as "engine acme", for the message. Raises UnsupportedError where the module cannot be imported or lacks the attribute.
    """
    module, _, attribute = reference.partition(":")
    try:
        found = importlib.import_module(module)
        return getattr(found, attribute) if attribute else found
    except (ImportError, AttributeError) as error:
        raise UnsupportedError(f"{what} cannot be loaded from {reference}: {error}") from error

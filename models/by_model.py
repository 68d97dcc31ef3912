"""Parameters that have one value for all models of a task, or a mapping with a value for each: `dim: {mlp: 64, gru: 400}`."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, cast

from buzzer.errors import UsageError, unknown_name

V = TypeVar("V")
ByModel: TypeAlias = V | dict[str, V]


def of(value: ByModel[V], model: str) -> V:
    """The value for a model."""
    return cast("dict[str, V]", value)[model] if isinstance(value, dict) else value


def check_names(key: str, kind: str, mapping: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise UsageError for a name in a mapping that is not known. key: the parameter. kind: what the names are, such as "model"."""
    for name in mapping:
        if name not in known:
            raise unknown_name(f"{kind} in {key}", name, known)


def check_complete(key: str, kind: str, mapping: Mapping[str, Any], needed: Sequence[str]) -> None:
    """Raise UsageError if a mapping lacks a name. key, kind: as in `check_names`."""
    for name in needed:
        if name not in mapping:
            raise UsageError(
                f"{key} has no value for {kind} {name}",
                f"--set '{key}={{{name}: ...}}', or one value for all",
            )

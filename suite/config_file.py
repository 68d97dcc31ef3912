"""Reads YAML from users: the file of `--config` and the values of `--set`. Unknown keys and wrong types are errors."""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from buzzer.errors import UsageError, unknown_name

MOST_BYTES = 1 << 20
MOST_COUNT = 10_000  # of rounds, and of workers
MOST_SEED = 2**31 - 1  # the largest that every library accepts
MOST_SCALE = 1000.0  # up to which all row counts are 64-bit integers
PARAMETERS = {
    "json": "as_json",
    "set": "set_",
}  # key in the file -> parameter of the command, where they differ

Names = str | list[str]


def check_scale(option: str, value: float | None) -> None:
    """Raise UsageError if `value`, given by `option`, is not a valid share of the official data size. None is valid."""
    if value is not None and not 0 < value <= MOST_SCALE:
        raise UsageError(
            f"{option} {value:g} must be above 0, and {MOST_SCALE:g} at most", "1 is the official size"
        )


class Options(BaseModel):
    """The keys of the file of `--config`. The descriptions are used in error messages."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    task: Names = Field("", description="a task's name, or a list of them")
    engine: Names = Field("", description="an engine's name, a list of them, or all")
    backend: Names = Field("", description="a backend's name, a list of them, or all")
    precision: Names = Field("", description="a precision's name, a list of them, or all")
    device: str = Field("", description="cpu or cuda")
    budget: Names = Field("", description="a budget's name, or a list of them")
    data: str = Field("", min_length=1, description="a folder")
    scale: float = Field(1.0, gt=0, le=MOST_SCALE, description=f"a number above 0, {MOST_SCALE:g} at most")
    train_scale: float = Field(
        1.0, gt=0, le=MOST_SCALE, description=f"a number above 0, {MOST_SCALE:g} at most"
    )
    seed: int = Field(0, ge=0, le=MOST_SEED, description=f"a whole number from 0 to {MOST_SEED}")
    rounds: int = Field(1, ge=1, le=MOST_COUNT, description=f"a whole number from 1 to {MOST_COUNT}")
    workers: int = Field(0, ge=0, description="a whole number, 0 for one process")
    scheduler: str = Field("", description="an address like tcp://host:8786")
    out: str = Field("", min_length=1, description="a folder")
    set: dict[str, Any] | list[str] = Field({}, description="a mapping of parameters, or a list of key=value")
    on_unmet_budget: str = Field("", description="fail or warn")
    resume: bool = Field(False, description="true or false")
    dry_run: bool = Field(False, description="true or false")
    json_: bool = Field(False, alias="json", description="true or false")


class Dumper(yaml.SafeDumper):
    """Quotes a text that `Loader` would read as a number."""


class Loader(yaml.SafeLoader):
    """A YAML loader that refuses duplicate keys, and aliases, with which a short file can describe a huge value."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node. Raises YAMLError for an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node. Raises YAMLError for a duplicate key."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.YAMLError(f"a key is given twice in line {node.start_mark.line + 1} or after")
        return mapping


# YAML 1.2 and JSON have numbers such as 1e-3, which PyYAML takes for texts.
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
for form in (Dumper, Loader):
    form.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("+-.0123456789"))


def parse(text: str, what: str) -> Any:
    """The value of a YAML text. Raises UsageError with a message that begins with `what`."""
    try:
        return yaml.load(text, Loader)
    except RecursionError as error:
        raise UsageError(f"{what}: not YAML: nested too deep") from error
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:  # month 13 is a ValueError
        message = " ".join(str(error).split())
        raise UsageError(f"{what}: not YAML: {message[:200]}") from error


def read(path: Path) -> dict[str, Any]:
    """The options in a file: parameters of the command, with values of the types that the command takes.

    Raises UsageError for a file that cannot be read, an unknown key, or a value that is not allowed.
    """
    content = parse(text_of(path), str(path))
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UsageError(f"{path}: not a mapping of options", "write `engine: pandas,polars` and the like")
    known = [field.alias or name for name, field in Options.model_fields.items()]
    given = {str(key).replace("-", "_"): value for key, value in content.items()}
    for key in given:
        if key not in known:
            raise unknown_name(f"key in {path}", key[:80], known)
    try:
        options = Options.model_validate({key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        allowed = next(f.description for name, f in Options.model_fields.items() if key in (name, f.alias))
        kind = type(given[key]).__name__
        raise UsageError(f"{path}: {key} is {shown(given[key])} ({kind})", f"{key}: {allowed}") from error
    values = options.model_dump(by_alias=True, exclude_unset=True)
    return {PARAMETERS.get(key, key): as_argument(key, value) for key, value in values.items()}


def text_of(path: Path) -> str:
    """The text of a file. Raises UsageError if it cannot be read, is larger than MOST_BYTES, or is not UTF-8."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UsageError(f"{path}: larger than {MOST_BYTES:,} bytes", "is this the file of options?")
        return content.decode()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}", "save it as UTF-8") from error


def shown(value: Any) -> str:
    """A value as text for a message, cut after 60 characters."""
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."


def as_argument(key: str, value: Any) -> Any:
    """The value of a key as the command takes it."""
    if key in ("data", "out"):
        return Path(value)
    if key == "set":
        return (
            [f"{name}={yaml_text(inner)}" for name, inner in value.items()]
            if isinstance(value, dict)
            else value
        )
    if key == "task":
        return [value] if isinstance(value, str) else value
    return ",".join(value) if isinstance(value, list) else value


def yaml_text(value: Any) -> str:
    """The value as YAML on one line, from which `--set` reads the same value."""
    text: str = yaml.dump(value, Dumper=Dumper, default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")

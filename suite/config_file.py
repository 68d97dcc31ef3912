"""YAML of users: the file of `--config` and the values of `--set`, read strictly."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from buzzer.errors import UsageError, unknown_name

MOST_BYTES = 1 << 20
MOST_REPEATS = 10_000
MOST_SEED = 2**31 - 1  # the largest that every library takes
MOST_SCALE = 1000.0  # at which every count of rows is still a whole number of 64 bits
SPELLED = {"json": "as_json", "set": "set_"}  # in the file -> as the command line's own name has it

Names = str | list[str]


def check_scale(option: str, value: float | None) -> None:
    """Raises UsageError for a share of the official size that no data can be made of; None is the default."""
    if value is not None and not 0 < value <= MOST_SCALE:
        raise UsageError(
            f"{option} {value:g} must be above 0, and {MOST_SCALE:g} at most", "1 is the official size"
        )


class Options(BaseModel):
    """What `--config` may hold. The descriptions are what a message says is allowed."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    task: Names = Field("", description="a task's name, or a list of them")
    engine: Names = Field("", description="an engine's name, a list of them, or all")
    backend: Names = Field("", description="a backend's name, a list of them, or all")
    precision: Names = Field("", description="a precision's name, a list of them, or all")
    device: str = Field("", description="cpu or cuda")
    budget: Names = Field("", description="a budget's name, or a list of them")
    data: str = Field("", min_length=1, description="a folder")
    scale: float = Field(1.0, gt=0, le=MOST_SCALE, description=f"a number above 0, {MOST_SCALE:g} at most")
    seed: int = Field(0, ge=0, le=MOST_SEED, description=f"a whole number from 0 to {MOST_SEED}")
    repeat: int = Field(1, ge=1, le=MOST_REPEATS, description=f"a whole number from 1 to {MOST_REPEATS}")
    workers: int = Field(0, ge=0, description="a whole number, 0 for one process")
    scheduler: str = Field("", description="an address like tcp://host:8786")
    out: str = Field("", min_length=1, description="a folder")
    set: dict[str, Any] | list[str] = Field({}, description="a mapping of parameters, or a list of key=value")
    on_unmet_budget: str = Field("", description="fail or warn")
    resume: bool = Field(False, description="true or false")
    dry_run: bool = Field(False, description="true or false")
    json_: bool = Field(False, alias="json", description="true or false")


class Loader(yaml.SafeLoader):
    """YAML without aliases, with which a short file can stand for a huge one, and without a key given twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            raise yaml.YAMLError(f"a key is given twice in line {node.start_mark.line + 1} or after")
        return found


def parse(text: str, what: str) -> Any:
    """The value of a YAML text. Raises UsageError that begins with `what`."""
    try:
        return yaml.load(text, Loader)
    except RecursionError as error:
        raise UsageError(f"{what}: not YAML: nested too deep") from error
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        OverflowError,
    ) as error:  # a date of month 13 is a ValueError
        told = " ".join(str(error).split())
        raise UsageError(f"{what}: not YAML: {told[:200]}") from error


def read(path: Path) -> dict[str, Any]:
    """The options in a file, by the command line's own names, and in the types that it has.

    Raises UsageError for a file that cannot be read, an unknown key, or a value that is not allowed.
    """
    given = parse(text_of(path), str(path))
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise UsageError(f"{path}: not a mapping of options", "write `engine: pandas,polars` and the like")
    known = [field.alias or name for name, field in Options.model_fields.items()]
    keys = {str(key).replace("-", "_"): value for key, value in given.items()}
    for key in keys:
        if key not in known:
            raise unknown_name(f"key in {path}", key[:80], known)
    try:
        found = Options.model_validate({key: value for key, value in keys.items() if value is not None})
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        allowed = next(f.description for name, f in Options.model_fields.items() if key in (name, f.alias))
        kind = type(keys[key]).__name__
        raise UsageError(f"{path}: {key} is {shown(keys[key])} ({kind})", f"{key}: {allowed}") from error
    plain = found.model_dump(by_alias=True, exclude_unset=True)
    return {SPELLED.get(key, key): as_flag(key, value) for key, value in plain.items()}


def text_of(path: Path) -> str:
    """The file's text. Raises UsageError for one that cannot be read, is larger than MOST_BYTES, or is not UTF-8."""
    try:
        with path.open("rb") as file:
            found = file.read(MOST_BYTES + 1)
        if len(found) > MOST_BYTES:
            raise UsageError(f"{path}: larger than {MOST_BYTES:,} bytes", "is this the file of options?")
        return found.decode()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}", "save it as UTF-8") from error


def shown(value: Any) -> str:
    """A value in a message: scalars as they are, of others only their beginning."""
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."


def as_flag(key: str, value: Any) -> Any:
    """A value as the flag has it."""
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
    """The value as YAML on one line, which `--set` reads back as it is."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")

"""Tasks, models, budgets, prices and published figures, as YAML files in this folder."""

from functools import cache
from pathlib import Path
from typing import Any

from buzzer.errors import UsageError

FOLDER = Path(__file__).resolve().parent


@cache
def load_yaml(name: str) -> Any:
    """The parsed content of configs/<name>, which is part of the package. The result is cached: do not change it."""
    return parse(FOLDER / name)


def parse(path: Path) -> Any:
    """The content of a YAML file. Raises UsageError if it cannot be read or is not YAML."""
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # bytes that are not UTF-8, and month 13, are ValueErrors
        raise UsageError(f"{path}: not YAML: {' '.join(str(error).split())[:200]}") from error

"""Tasks, budgets and published figures, as YAML beside this file."""

from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


@cache
def load_yaml(name: str) -> Any:
    """The parsed content of configs/<name>; trust it to be there, it is part of the package."""
    import yaml

    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))

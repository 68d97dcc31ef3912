"""Tasks, models, budgets, prices and published figures, as YAML files in this folder."""

from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


@cache
def load_yaml(name: str) -> Any:
    """The parsed content of configs/<name>, which is part of the package. The result is cached: do not change it."""
    import yaml

    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))

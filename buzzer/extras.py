"""Packages that only some commands need, and the extras that install them. The core install reads records; the extra `run` runs things."""

import importlib.util

from buzzer.errors import UnsupportedError

# Package (as it is imported) -> extra.
EXTRAS: dict[str, str] = {"altair": "plots"} | dict.fromkeys(
    (
        *("benchexec", "onnx", "onnxruntime", "pandas", "polars", "pyarrow", "safetensors", "tokenizers"),
        *("torch", "xgboost"),
    ),
    "run",
)


def hint(package: str | None) -> str:
    """How to install a package; "" if no extra of this table does.

    >>> hint("torch"), hint("json")
    ("pip install 'buzzer[run]'", '')
    """
    extra = EXTRAS.get((package or "").partition(".")[0])
    return f"pip install 'buzzer[{extra}]'" if extra else ""


def require(package: str, what: str) -> None:
    """Raises UnsupportedError if a package is not installed that `what`, the subject of the message, needs."""
    if importlib.util.find_spec(package) is None:
        raise UnsupportedError(f"{what} needs the package {package}", hint(package))

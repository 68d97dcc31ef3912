"""XGBoost, imported without scikit-learn, which buzzer does not use. XGBoost imports it where it is installed, which takes a second: the
time of a run would depend on a package that it does not need.

Import XGBoost only from here: `from buzzer.engine.xgb import xgboost`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from buzzer.errors import UnsupportedError

SKLEARN = "sklearn"


@contextmanager
def without_sklearn() -> Iterator[None]:
    """Inside the context an import of scikit-learn fails, unless it is imported already."""
    if SKLEARN in sys.modules:
        yield
        return
    sys.modules[SKLEARN] = None  # type: ignore[assignment]  # how Python is told that there is no such package
    try:
        yield
    finally:
        del sys.modules[SKLEARN]


try:
    with without_sklearn():
        import xgboost
except ImportError as error:
    raise UnsupportedError("XGBoost is not installed", "pip install 'buzzer[run]'") from error


def dask() -> Any:
    """XGBoost's interface to Dask. Raises ImportError without Dask."""
    from xgboost import dask

    return dask


__all__ = ["dask", "xgboost"]

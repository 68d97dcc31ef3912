"""Whether a lazy plan would run on cuDF as a whole; asked of cudf-polars' translator, which needs no GPU."""

import importlib.util
from typing import Any

import polars as pl

from buzzer.errors import UnsupportedError


def refusals(plan: pl.LazyFrame) -> list[str]:
    """What cudf-polars would not run, in its own words; empty for a plan that translates whole.

    Raises UnsupportedError where the `gpu-plan` extra is not installed.
    """
    if importlib.util.find_spec("cudf_polars") is None:
        raise UnsupportedError("cudf-polars is not installed", "pip install 'buzzer[gpu-plan]'")
    from cudf_polars import Translator

    engine = pl.GPUEngine(executor="in-memory", raise_on_fail=True)
    translator: Any = Translator(plan._ldf.visit(), engine)
    translator.translate_ir()
    return [f"{type(error).__name__}: {error}" for error in translator.errors]

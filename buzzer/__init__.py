"""buzzer: recommender and competition inference benchmarks under time and memory budgets.

>>> import buzzer
>>> request = buzzer.RunRequest("booking", engines=["pandas", "polars"], budget="1c4g5m")
>>> records = buzzer.run(request)  # doctest: +SKIP
>>> records.to_pandas()  # doctest: +SKIP
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a checkout the packages are folders at the root; an install maps them by pyproject's package-dir.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "suite").is_dir():
    __path__.insert(0, str(_checkout))

if TYPE_CHECKING:
    from buzzer.suite.api import Comparisons, Frontier, bench, compare, frontier, load_records, report, run
    from buzzer.suite.records.collection import Records
    from buzzer.suite.records.schema import Record
    from buzzer.suite.report import plots
    from buzzer.suite.requests import BenchRequest, CompareRequest, FrontierRequest, RunRequest
    from buzzer.suite.run.executor import Observer
else:  # type checkers must not see it: it would allow any name

    def __getattr__(name: str) -> Any:
        """The public names of `buzzer.suite.api`, imported when they are first used."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module("buzzer.suite.api"), name)


__all__ = [
    "BenchRequest",
    "CompareRequest",
    "Comparisons",
    "Frontier",
    "FrontierRequest",
    "Observer",
    "Record",
    "Records",
    "RunRequest",
    "bench",
    "compare",
    "frontier",
    "load_records",
    "plots",
    "report",
    "run",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

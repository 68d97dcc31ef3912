"""buzzer: recommender and competition inference benchmarks under time and memory budgets."""

from pathlib import Path

__version__ = "0.1.0"

# In a checkout the rooms are folders at the root; an install maps them by pyproject's package-dir.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "suite").is_dir():
    __path__.insert(0, str(_checkout))

"""XGBoost is imported without scikit-learn, and only by one module."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, path: Path) -> str:
    """What a program prints that finds modules in `path` first."""
    code = f"import sys; sys.path.insert(0, {str(path)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def sklearn(tmp_path: Path) -> Path:
    """A folder with a scikit-learn that says when it is imported."""
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn" / "__init__.py").write_text("print('imported'); __version__ = '1.7'")
    return tmp_path


def test_scikit_learn_is_not_imported(sklearn: Path) -> None:
    code = "from buzzer.engine.xgb import xgboost; print(xgboost.Booster.__name__, 'sklearn' in sys.modules)"
    assert run(code, sklearn) == "Booster False"


def test_scikit_learn_can_be_imported_before_and_after(sklearn: Path) -> None:
    assert run("import buzzer.engine.xgb; import sklearn", sklearn) == "imported"
    code = "import sklearn; from buzzer.engine.xgb import without_sklearn\nwith without_sklearn():\n import sklearn"
    (sklearn / "xgboost.py").write_text("")
    assert run(f"{code}\nassert sklearn is sys.modules['sklearn']", sklearn) == "imported"


def test_xgboost_is_imported_nowhere_else() -> None:
    line = re.compile(r"^\s*(import xgboost|from xgboost)\b", re.MULTILINE)
    files = [
        path for root in ("engine", "models", "suite", "datasets") for path in (ROOT / root).rglob("*.py")
    ]
    assert [path.name for path in files if line.search(path.read_text())] == ["xgb.py"]

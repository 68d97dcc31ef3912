"""The notebook of the docs: its code runs, and it is stored with the outputs of all its cells."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "notebook.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
MOST_BYTES = 600_000


def test_its_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Altair, the lines that need it are left out."""
    monkeypatch.chdir(NOTEBOOK.parent)
    plots, names = importlib.util.find_spec("altair") is not None, dict[str, Any]()
    for cell in CELLS:
        lines = [line for line in cell["source"] if plots or not ("altair" in line or ".plots." in line)]
        exec("".join(lines), names)  # noqa: S102
    assert set(names["largest"]["engine"]) == {"pandas", "polars"}
    assert names["comparison"].results


def test_it_is_stored_with_the_outputs_of_all_cells() -> None:
    assert NOTEBOOK.stat().st_size < MOST_BYTES
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    for cell in CELLS:
        kinds = {
            kind for output in cell["outputs"] for kind in output.get("data", {output["output_type"]: ""})
        }
        assert kinds and "error" not in kinds
        assert ("image/svg+xml" in kinds) == (".plots." in "".join(cell["source"]))

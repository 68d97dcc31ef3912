"""Records as a sequence and as data frames."""

import doctest
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import polars as pl
import pytest

from buzzer.errors import UsageError
from buzzer.suite.budget import resolve
from buzzer.suite.records import collection, frame, layout, record
from buzzer.suite.records.collection import Records, load_records
from buzzer.suite.records.schema import Record

ROOT = Path(__file__).resolve().parents[3]
Make = Callable[..., Record]

# Two runs, and the expected values of their rows, written by hand.
FIRST: dict[str, Any] = {
    "scores": {"accuracy": 0.9, "loss": 0.5},
    "gate": {"status": "passed", "reference_run": "b" * 32, "differences": {"accuracy": 0.0}},
    "config": {"epochs": 2, "sizes": [1, 2], "rate": 1},
    "energy_j": {"cpu": 12.5},
    "gpu_busy_s": 0.25,
    "work": {
        "trees": 360.0,
        "tree_nodes": 1800.0,
        "network_flops": 4e4,
        "table_rows": 120_000,
        "summed_rows": 3_600_000,
    },
}
SECOND: dict[str, Any] = {
    "run_id": "b" * 32,
    "outcome": "timeout",
    "message": "over the time limit",
    "scores": {},
    "gate": {"status": "unscored"},
    "budget": {"name": "unlimited", "cores": None, "memory_bytes": None, "time_s": None, "unmet": ["a", "b"]},
    "cpu_s": None,
    "phases": [{"name": "load", "wall_s": 2.0, "cpu_s": 0.5, "peak_memory_bytes": 10**7}],
    "samples": {"load": [0.25, 0.5, 1.25]},
    "config": {"epochs": 3, "fast": True, "rate": 0.5},
    "versions": {"python": "3.12", "polars": "1.40"},
}
CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
UNLIMITED = {"name": "unlimited", "cores": None, "memory_bytes": None, "time_s": None}
MACHINE = "a processor (AVX2), 2 cores, 16 GiB, no GPU"
EXPECTED: dict[str, tuple[Any, Any]] = {
    "run_id": ("a" * 32, "b" * 32),
    "created": (CREATED, CREATED),
    "task": ("fake", "fake"),
    "cluster": ("", ""),
    "scale": (1.0, 1.0),
    "seed": (0, 0),
    "published": (False, False),
    "outcome": ("ok", "timeout"),
    "gate": ("passed", "unscored"),
    "gate_reference_run": ("b" * 32, None),
    "metric": ("accuracy", "accuracy"),
    "score": (0.9, None),
    "score_accuracy": (0.9, None),
    "score_loss": (0.5, None),
    "wall_s": (2.0, 2.0),
    "cpu_s": (1.5, None),
    "gpu_busy_s": (0.25, None),
    "energy_cpu_j": (12.5, None),
    "budget": ("1c2g30s", "unlimited"),
    "budget_cores": (1, None),
    "budget_memory_bytes": (2 * 10**9, None),
    "budget_time_s": (30.0, None),
    "budget_gpu_memory_bytes": (None, None),
    "budget_unmet": (None, "a; b"),
    "machine": (MACHINE, MACHINE),
    "machine_cores": (2, 2),
    "machine_gpus": (None, None),
    "phase_start_s": (0.5, None),
    "phase_predict_s": (1.5, None),
    "phase_load_s": (None, 2.0),
    "lap_predict_s": (0.5, None),
    "lap_load_s": (None, 0.5),
    "param_epochs": (2, 3),
    "param_rate": (1.0, 0.5),
    "param_sizes": ("[1, 2]", None),
    "param_fast": (None, True),
    "version_python": ("3.11", "3.12"),
    "version_polars": (None, "1.40"),
    "bench_rows": (None, None),
    "work_trees": (360.0, None),
    "work_tree_nodes": (1800.0, None),
    "work_network_flops": (4e4, None),
    "work_table_rows": (120_000, None),
    "work_summed_rows": (3_600_000, None),
    "git_commit": (None, None),
}


@pytest.fixture
def two(make_record: Make) -> Records:
    return Records([make_record(**FIRST), make_record(**SECOND)])


def polars_rows(records: Records) -> list[dict[str, Any]]:
    return records.to_polars().to_dicts()


def pandas_rows(records: Records) -> list[dict[str, Any]]:
    rows = records.to_pandas().to_dict("records")
    return [{str(k): None if pd.isna(v) else v for k, v in row.items()} for row in rows]


@pytest.mark.parametrize("rows_of", [polars_rows, pandas_rows])
def test_each_run_is_one_row(two: Records, rows_of: Callable[[Records], list[dict[str, Any]]]) -> None:
    first, second = rows_of(two)
    for name, (one, other) in EXPECTED.items():
        assert (first[name], second[name]) == (one, other), name


def test_both_frames_have_the_columns_of_the_schema_first(two: Records) -> None:
    names = [*two.to_pandas().columns]
    assert names == two.to_polars().columns
    assert names[: len(frame.FIRST)] == [*frame.FIRST]
    fields = set(Record.model_json_schema()["properties"])
    objects = {
        "scores",
        "energy_j",
        "phases",
        "samples",
        "versions",
        "data_rows",
        "notes",
        "config",
        "command",
    }
    objects |= {"bench", "work", "details", "stderr_tail"}
    assert fields - objects <= set(names)
    assert Records().to_polars().columns == [*Records().to_pandas().columns] == [*frame.fixed_columns()]


KINDS = {"string": pl.String, "Int64": pl.Int64, "Float64": pl.Float64, "boolean": pl.Boolean}


def test_both_frames_agree_on_the_published_records() -> None:
    records = load_records(ROOT / "results")
    left, right = records.to_pandas(), records.to_polars()
    assert (len(left), [*left.columns]) == (len(records), right.columns)
    for name in right.columns:
        expected = KINDS.get(str(left[name].dtype), pl.Datetime("us", "UTC"))
        assert right[name].dtype == expected, name
        values = [None if pd.isna(value) else value for value in left[name].tolist()]
        assert values == right[name].to_list(), name
    assert right["wall_s"].to_list() == [r.wall_s for r in records]


def test_a_collection_is_an_immutable_sequence(two: Records, make_record: Make) -> None:
    assert len(two) == 2
    assert two[1].outcome == "timeout" and two[-1] is two[1]
    assert isinstance(two[:1], Records) and two[:1] == Records([two[0]])
    assert [*two + two[:1]] == [two[0], two[1], two[0]]
    assert two != [*two] and two[0] in two
    with pytest.raises(TypeError):
        two[0] = make_record()  # type: ignore[index]
    with pytest.raises(AttributeError):
        two.more = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({}, [0, 1]),
        ({"outcome": "ok"}, [0]),
        ({"outcome": ["ok", "timeout"]}, [0, 1]),
        ({"outcome": {"error"}}, []),
        ({"budget": "unlimited"}, [1]),
        ({"budget_cores": 1, "task": "fake"}, [0]),
        ({"score": None}, [1]),
        ({"param_epochs": 3}, [1]),
        ({"gate": ("passed", "reference")}, [0]),
    ],
)
def test_records_are_filtered_by_column(two: Records, columns: dict[str, Any], chosen: list[int]) -> None:
    assert [*two.filter(**columns)] == [two[i] for i in chosen]


def test_records_are_filtered_by_a_function(two: Records) -> None:
    assert [*two.filter(lambda r: r.cpu_s is None)] == [two[1]]
    assert [*two.filter(lambda r: r.cpu_s is None, outcome="ok")] == []


def test_an_unknown_column_is_named(two: Records) -> None:
    with pytest.raises(UsageError, match="unknown column 'engin'") as caught:
        two.filter(engin="pandas")
    assert "did you mean engine?" in caught.value.hint
    assert len(Records().filter(score_accuracy=0.9)) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda two: two.filter(5), "5 is not a function of a record"),
        (lambda two: two.filter("pandas"), "'pandas' is not a function of a record"),
        (lambda two: Records([1]), "1 is not a record"),
        (lambda two: Records("results"), "'results' is not a record"),
        (lambda two: Records(5), "5 is not a record"),
        (lambda two: Records(two.to_pandas()), "a DataFrame is not a record"),
        (lambda two: two + 5, "5 is not a record"),
    ],
)
def test_what_is_no_record_is_refused(two: Records, call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(two)


def test_one_record_is_a_collection_of_one(two: Records) -> None:
    assert Records(two[0]) == two[:1]
    assert two[:1] + two[1] == two
    assert len(two.filter(engine="pandsa")) == 0


def test_a_notebook_shows_a_table_without_markup_from_records(make_record: Make) -> None:
    records = Records([make_record(task="<script>alert(1)</script>")] * 30)
    shown = records._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown
    assert shown.count("<tr>") == 21 and "The first 20 are shown" in shown
    assert repr(records) == "Records(30 runs of <script>alert(1)</script>; 30 ok)"
    assert repr(Records()) == "Records(no runs)"


# ---- reading ------------------------------------------------------------------------------------------------------


def test_flat_and_nested_folders_give_the_same_records(make_record: Make, tmp_path: Path) -> None:
    """Older versions wrote all records directly into the folder."""
    machine = make_record().machine.model_dump()
    for number in range(6):
        changes: dict[str, Any] = {"run_id": f"{number:08x}", "task": ["a", "b"][number % 2]}
        changes["created"] = datetime(2026, 1, 2, 3, 4, 5 + number, tzinfo=UTC)
        changes["machine"] = machine | {"cores": 1 + number % 3}
        path = record.write(make_record(**changes, budget=UNLIMITED), tmp_path / "new")
        (tmp_path / "flat").mkdir(exist_ok=True)
        (tmp_path / "flat" / path.name).write_bytes(path.read_bytes())
    records = load_records(tmp_path / "flat")
    assert [int(r.run_id, 16) for r in records] == [*range(6)]
    assert load_records(tmp_path / "new") == records
    assert len({path.parent for path in (tmp_path / "new").rglob("*.json")}) == 6
    (path,) = (tmp_path / "new").rglob("*-00000000.json")
    assert load_records(str(tmp_path / "new"), path) == records, "each file once"


def test_the_published_records_read_the_same_from_one_flat_folder(tmp_path: Path) -> None:
    for path in record.paths([ROOT / "results"]):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert load_records(tmp_path) == load_records(ROOT / "results")


def test_records_with_problems_are_left_out_with_a_warning(make_record: Make, tmp_path: Path) -> None:
    good = record.write(make_record(), tmp_path)
    (tmp_path / "cut.json").write_text("{")
    lie = record.write(make_record(run_id="c" * 32, rows=0), tmp_path)
    with pytest.warns(UserWarning, match="left out") as caught:
        records = load_records(tmp_path)
    assert [*records] == [record.read(good)]
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert any("cut.json: not a record" in message for message in messages)
    assert any(f"{lie}: the task predicted no rows" in message for message in messages)
    assert caught[0].filename == __file__


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        load_records(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert len(load_records(tmp_path / "empty")) == 0


def spent(phase: str, wall_s: float) -> dict[str, Any]:
    """The times of a run: half a second to start, and one more phase."""
    phases = {"start": 0.5, phase: wall_s - 0.5}
    used = {"cpu_s": 0.1, "peak_memory_bytes": 10**7}
    return {
        "wall_s": wall_s,
        "phases": [{"name": name, "wall_s": seconds, **used} for name, seconds in phases.items()],
        "samples": {},
    }


@pytest.fixture
def examples(make_record: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder `runs` of the examples: a fit and four timed runs of booking, and two runs of gbdt."""
    runs: list[dict[str, Any]] = [{"job": "fit", "engine": "polars", "budget": UNLIMITED}]
    runs[0] |= {"gate": {"status": "no-reference"}} | spent("fit", 9.0)
    passed = {"status": "passed", "reference_run": "1" * 32, "differences": {"accuracy@4": 0.0}}
    for engine, backend in product(("pandas", "polars"), ("torch_eager", "onnxruntime")):
        is_reference = len(runs) == 1
        run = {"engine": engine, "backend": backend, "budget": resolve("quick").as_dict()}
        gate = {"status": "reference"} if is_reference else passed
        runs.append(run | {"gate": gate} | spent("predict", 2.0 if is_reference else 1.0))
    unsupported = {"outcome": "unsupported", "message": "no", "scores": {}, "gate": {"status": "unscored"}}
    runs += [{"task": "gbdt"}, {"task": "gbdt"} | unsupported]
    for number, changes in enumerate(runs):
        fields = {"task": "booking", "scores": {"accuracy@4": 0.5}, "metric": "accuracy@4"}
        fields |= {"run_id": str(number) * 32, "created": CREATED + timedelta(minutes=number)}
        record.write(make_record(**(fields | changes)), tmp_path / "runs")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("module", [collection, layout])
def test_the_examples_run(examples: None, module: ModuleType) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        failed, tried = doctest.testmod(module)
    assert tried and not failed


def test_the_example_in_the_docs_runs(examples: None) -> None:
    page = (ROOT / "docs" / "records.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    test = doctest.DocTestParser().get_doctest(example, {}, "records.md", "records.md", 0)
    assert len(test.examples) > 3
    assert doctest.DocTestRunner().run(test).failed == 0


def test_the_columns_are_described_in_the_docs() -> None:
    page = (ROOT / "docs" / "records.md").read_text()
    for name in frame.fixed_columns():
        described = f"`{name}`" in page or (name.startswith("bench_") and f"`{name[6:]}`" in page)
        assert described, name
    for prefix in frame.PREFIXES:
        assert f"`{prefix}<" in page


def test_reading_records_imports_no_data_frame_library() -> None:
    code = (
        "import sys; from buzzer.suite.records.collection import load_records; load_records('results/gbdt');"
        "sys.exit(', '.join({'pandas', 'polars', 'torch', 'pyarrow'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

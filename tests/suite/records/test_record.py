import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from buzzer.errors import DataError
from buzzer.suite.records import integrity, record
from buzzer.suite.records.schema import Record, json_schema

Make = Callable[..., Record]
SIZES = {"batch": 1, "seq": 8, "lengths": "fixed", "scenario": ""}


def test_what_is_written_reads_back(make_record: Make, tmp_path: Path) -> None:
    path = record.write(make_record(), tmp_path)
    back = record.read(path)
    assert back.model_dump(exclude={"content_hash"}) == make_record().model_dump(exclude={"content_hash"})
    assert record.paths([tmp_path]) == [path]


def test_submissions_next_to_records_are_not_read_as_records(make_record: Make, tmp_path: Path) -> None:
    path = record.write(make_record(), tmp_path)
    submission = tmp_path / "files" / "aaaaaaaa" / "submission.json"
    submission.parent.mkdir(parents=True)
    submission.write_text("[1, 2]")
    assert record.paths([tmp_path]) == [path]
    assert record.paths([submission]) == [submission]


def test_local_records_are_not_published_with_their_folder(make_record: Make, tmp_path: Path) -> None:
    path = record.write(make_record(), tmp_path / "local")
    assert record.paths([tmp_path]) == []
    assert record.paths([tmp_path / "local"]) == [path]


@pytest.mark.parametrize("vanishing", ["fake", "files"])
def test_a_folder_that_vanishes_is_passed_over(
    make_record: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vanishing: str
) -> None:
    """Another process may remove a folder after its parent was listed."""
    out, scandir = tmp_path / "out", os.scandir
    record.write(make_record(), out)
    kept = record.write(make_record(task="kept"), out)
    (out / "files" / "aaaaaaaa").mkdir(parents=True)

    def removing(path: Any) -> Any:
        if Path(path) == out / vanishing:
            (out / vanishing).rename(tmp_path / "gone")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", removing)
    assert kept in record.paths([out])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wall_s": 5.0}, "phases add up to 2.000 s, wall_s is 5.000 s"),
        ({"wall_s": -1.0}, "wall_s"),
        ({"outcome": "great"}, "outcome"),
        ({"surprise": 1}, "surprise"),
        ({"schema_version": 2}, "schema_version"),
        ({"scale": 0}, "scale"),
        ({"scores": {"accuracy": "high"}}, "scores.accuracy"),
        ({"budget": {"name": "x"}}, "budget.cores"),
        ({"machine": {}}, "machine.cpu"),
        ({"machine": {"cpu": "a", "cores": 1, "memory_bytes": 1, "gpus": [{}]}}, "machine.gpus.0.name"),
        ({"machine": {"cpu": "a", "cores": 0, "memory_bytes": 1, "gpus": []}}, "machine.cores"),
        ({"created": "2026-01-01T00:00:00"}, "created"),
        ({"created": "0001-01-01T00:00:00Z"}, "created: .* year 1"),
        ({"rows": 10**30}, "an integer of 100 bits"),
        ({"rows": 2**60}, "rows"),
        ({"wall_s": 0.0, "phases": []}, "ok after 0 s"),
        ({"details": {"ceiling": [1]}}, "details: .*ceiling"),
        ({"details": {"ceilings": {"AP": "high"}}}, "details: .*ceilings"),
        ({"details": {"a": [[]] * 2, "deep": json.loads("[" * 40 + "]" * 40)}}, "nested more than 30 deep"),
        ({"scores": {"accuracy": float("nan")}}, "NaN is not valid JSON"),
        ({"message": "\ud800"}, "surrogates"),
        ({"job": "bench", "config": {"batch": 0}}, "batch"),
        ({"job": "bench", "config": SIZES | {"model": ["a"]}}, "model: Input should be a valid dictionary"),
        ({"details": {"import_s": {"torch": -1.0}}}, "import_s"),
        ({"job": "bench", "config": SIZES, "samples": {"warm_run": [0.0]}}, "took no time"),
        ({"run_id": "../../etc/passwd"}, "run_id"),
    ],
)
def test_an_invalid_record_is_reported_by_field(
    make_record: Make, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    fields = make_record().model_dump(mode="json") | change
    fields["content_hash"] = record.content_hash(fields)
    (tmp_path / "r.json").write_text(json.dumps(fields))
    with pytest.raises(DataError, match=message):
        record.read(tmp_path / "r.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "null"])
def test_a_file_that_is_not_a_record_is_reported(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"r\.json: not"):
        record.read(tmp_path / "r.json")


def test_an_edited_record_is_detected(make_record: Make, tmp_path: Path) -> None:
    path = record.write(make_record(), tmp_path)
    path.write_text(path.read_text().replace('"accuracy": 0.9', '"accuracy": 0.99'))
    with pytest.raises(DataError, match="edited"):
        record.read(path)


def test_phases_may_miss_the_wall_time_by_one_per_cent(make_record: Make) -> None:
    make_record(wall_s=2.02)
    with pytest.raises(ValueError, match="add up"):
        make_record(wall_s=2.06)
    make_record(wall_s=9.0, outcome="timeout")  # of a killed run, only these phases are known


def test_nan_in_details_is_written_as_null(make_record: Make, tmp_path: Path) -> None:
    """JSON has no NaN, and every written record can be read."""
    path = record.write(make_record(details={"loss": [float("nan"), 1.0]}), tmp_path)
    assert record.read(path).details == {"loss": [None, 1.0]}


@pytest.mark.parametrize("details", [json.loads("[" * 40 + "]" * 40), "\ud800", 2**70])
def test_details_that_cannot_be_read_again_are_refused(make_record: Make, details: Any) -> None:
    with pytest.raises(ValueError, match="details"):
        make_record(details={"a": details})


def test_a_full_disk_leaves_nothing_behind(
    make_record: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *args: Any, **kwargs: Any) -> None:
        with open(self, "w") as file:  # noqa: PTH123  write_text itself is replaced
            file.write("{")
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DataError, match="No space left") as caught:
        record.write(make_record(), tmp_path)
    assert "--out" in caught.value.hint
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_every_field_is_described_in_the_docs() -> None:
    text = (Path(__file__).parents[3] / "docs" / "records.md").read_text()
    schema = json_schema()
    models = {"Record": schema, **schema["$defs"]}
    for name, model in models.items():
        for field, about in model["properties"].items():
            assert about.get("description"), f"{name}.{field} has no description"
            assert f"`{field}`" in text, f"docs/records.md does not describe {name}.{field}"


def test_created_is_utc(make_record: Make) -> None:
    now = datetime.now(UTC)
    assert now - make_record(created=now).created < timedelta(seconds=1)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "many", None])
@pytest.mark.parametrize("name", ["trees", "tree_nodes", "network_flops", "table_rows"])
def test_work_is_finite_and_not_negative(make_record: Make, name: str, value: object) -> None:
    work = {"trees": 1.0, "tree_nodes": 8.0, "network_flops": 0.0, "table_rows": 0}
    assert make_record(work=work).work is not None and make_record().work is None
    with pytest.raises(ValidationError, match=f"work.{name}"):
        make_record(work=work | {name: value})


def test_links_and_pipes_are_written_in_place(tmp_path: Path) -> None:
    """A rename would replace them: `--out /dev/stdout` would destroy the device's name."""
    (tmp_path / "target").write_text("old")
    link, fifo = tmp_path / "link", tmp_path / "fifo"
    link.symlink_to("target")
    record.write_text(link, "new")
    assert link.is_symlink() and (tmp_path / "target").read_text() == "new"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    record.write_text(fifo, "through")
    assert os.read(reader, 100) == b"through"
    assert fifo.is_fifo()
    os.close(reader)
    with pytest.raises(DataError, match="Is a directory"):
        record.write_text(tmp_path, "text")


def test_a_folder_that_cannot_be_read_is_reported(
    make_record: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, scandir = tmp_path / "out", os.scandir
    closed = record.write(make_record(), out).parent
    kept = record.write(make_record(task="kept"), out)

    def refusing(path: Any) -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    checked = integrity.examine(record.paths([out]))
    assert [*checked.good] == [kept]
    (line,) = checked.left_out()
    assert line.startswith(f"left out: {closed}: ")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (path,) = record.paths([tmp_path])
    with pytest.raises(DataError, match="not a regular file"):
        record.read(path)


@pytest.mark.parametrize("name", [250 * "x" + ".html", 125 * "ü" + ".md"])
def test_a_file_may_have_the_longest_name(name: str, tmp_path: Path) -> None:
    record.write_text(tmp_path / name, "text")
    assert [path.name for path in tmp_path.iterdir()] == [name]

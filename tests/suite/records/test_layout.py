"""The layout of a folder of records."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from buzzer.suite.records import comparable, integrity, layout, record
from buzzer.suite.records.schema import Record

Make = Callable[..., Record]
ROOT = Path(__file__).resolve().parents[3]


def on(make_record: Make, cpu: str, *gpus: str) -> Record:
    """A run on a machine with this processor and these GPUs."""
    machine = make_record().machine.model_dump()
    return make_record(machine=machine | {"cpu": cpu, "gpus": [{"name": name} for name in gpus]})


def test_a_record_is_written_below_its_task_and_machine(make_record: Make, tmp_path: Path) -> None:
    path = record.write(make_record(), tmp_path)
    name = "20260102T030405-fake-predict-none-torch_eager-aaaaaaaa.json"
    assert path == tmp_path / "fake" / "a-processor-avx2-2-cores-16-gib" / name


LONG = "Intel(R) Xeon(R) Platinum 8480+ with a very long name of sixty characters"


@pytest.mark.parametrize(
    ("cpu", "gpus", "folder"),
    [
        ("AMD EPYC", (), "amd-epyc-avx2-2-cores-16-gib"),
        ("AMD EPYC", ("NVIDIA H100",), "amd-epyc-avx2-2-cores-16-gib-nvidia-h100"),
        ("../../étc/$(x)", (), "tc-x-avx2-2-cores-16-gib"),
        ("", (), "avx2-2-cores-16-gib"),
        (LONG, (), r"intel-r-xeon-r-platinum-8480-with-a-very-long-name-of-s-[0-9a-f]{8}"),
    ],
)
def test_a_machines_folder_has_a_safe_and_short_name(
    make_record: Make, cpu: str, gpus: tuple[str, ...], folder: str
) -> None:
    name = layout.machine_folder(on(make_record, cpu, *gpus))
    assert re.fullmatch(folder, name) and len(name) <= layout.MAX_LENGTH


def test_machines_whose_names_are_cut_have_different_folders(make_record: Make) -> None:
    names = {layout.machine_folder(on(make_record, LONG, gpu)) for gpu in ("NVIDIA A", "NVIDIA B")}
    assert len(names) == 2


def test_a_machine_with_one_core_is_the_same_under_its_older_folder(
    make_record: Make, tmp_path: Path
) -> None:
    fields = make_record().machine.model_dump() | {"cores": 1, "cpu": "AMD EPYC"}
    older, newer = (make_record(machine=fields, run_id=digit * 32) for digit in "ab")
    path = record.write(newer, tmp_path)
    assert path.parent.name == "amd-epyc-avx2-1-core-16-gib"
    before = path.parent.with_name("amd-epyc-avx2-1-cores-16-gib") / "older.json"
    before.parent.mkdir()
    record.write(older, tmp_path).rename(before)
    assert layout.root(before, older) == layout.root(path, newer) == tmp_path
    assert comparable.times(older) == comparable.times(newer)


@pytest.mark.parametrize("task", ["files", "local", ".hidden", "../up", "a/b", "x" * 200, "", "ü"])
def test_every_task_has_a_folder_that_is_searched(make_record: Make, tmp_path: Path, task: str) -> None:
    folder = layout.task_folder(task)
    assert re.fullmatch(r"([0-9A-Za-z_-][0-9A-Za-z._-]*-)?[0-9a-f]{8}", folder) and len(folder) <= 64
    assert layout.task_folder(folder) == folder
    path = record.write(make_record(task=task), tmp_path)
    assert record.paths([tmp_path]) == [path]
    assert path.parent.parent == tmp_path / folder


def test_the_root_folder_of_a_record(make_record: Make, tmp_path: Path) -> None:
    r = make_record()
    path = record.write(r, tmp_path)
    flat = tmp_path / path.name
    assert layout.root(path, r) == layout.root(flat, r) == tmp_path
    moved = tmp_path / "fake" / "elsewhere" / path.name
    assert layout.root(moved, r) == moved.parent


def test_the_reference_of_a_pass_may_have_run_on_another_machine(make_record: Make, tmp_path: Path) -> None:
    """The gate compares scores across machines, so the reference's record can lie in another machine's folder."""
    reference = on(make_record, "AMD EPYC")
    gate = {"status": "passed", "reference_run": reference.run_id, "differences": {"accuracy": 0.0}}
    changed = {"run_id": "b" * 32, "backend": "onnxruntime", "gate": gate}
    path = record.write(make_record(**changed), tmp_path)
    assert integrity.examine([path]).problems[path] != []
    elsewhere = record.write(reference, tmp_path)
    assert elsewhere.parent != path.parent
    assert integrity.examine([path]).problems[path] == []
    elsewhere.rename(tmp_path / elsewhere.name)  # the flat layout of older versions
    assert integrity.examine([path]).problems[path] == []


def test_published_records_are_where_they_would_be_written() -> None:
    paths = record.paths([ROOT / "results"])
    assert paths
    for path in paths:
        r = record.read(path)
        assert path.name == layout.relative_path(r).name
        assert layout.root(path, r) == ROOT / "results"

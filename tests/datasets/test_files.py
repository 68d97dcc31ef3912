"""Other things in the place of a file: pipes, folders, broken links, unreadable files, and gzip files of many forms."""

import gzip
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest

from buzzer.datasets import booking, clinc150, online_shoppers, open_bandit, recsys2021, sigir_ecom
from buzzer.datasets.contract import silent
from buzzer.datasets.files import (
    PATTERNS,
    GeneratorFacts,
    csv_blocks,
    find,
    generator_facts,
    new_folder,
    opened,
    origin,
)
from buzzer.engine import frames
from buzzer.errors import DataError


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket has at most 108 bytes
        server.bind(path.name)
        os.chdir(here)


THINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, "no such file"),
    "a folder": (Path.mkdir, "not a regular file"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "a socket": (bound, "not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "No such file"),
}


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
@pytest.mark.parametrize("thing", THINGS)
def test_other_things_than_files_are_refused(tmp_path: Path, thing: str, name: str) -> None:
    make, expected = THINGS[thing]
    make(tmp_path / name)
    with pytest.raises(DataError, match=expected), opened(tmp_path / name) as file:
        file.read()
    if thing == "nothing":
        assert find(tmp_path, [name.removesuffix(".gz")]) is None
    else:  # it does not count as a missing file
        with pytest.raises(DataError, match=expected):
            find(tmp_path, [name.removesuffix(".gz")])


@pytest.mark.parametrize("name", ["ground_truth.csv", "generator.json"])
def test_a_broken_link_does_not_count_as_a_missing_file(tmp_path: Path, name: str) -> None:
    """Otherwise generated data would count as official, or a run would have no score."""
    booking.generate(tmp_path / "data", 0.00003, 5, silent)
    (tmp_path / "data" / name).unlink()
    (tmp_path / "data" / name).symlink_to("nowhere")
    with pytest.raises(DataError, match=name):
        booking.check(tmp_path / "data", silent)


def test_a_file_without_read_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.csv").write_text("a\n1\n")

    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)  # root can read all files
    with pytest.raises(DataError, match=r"x\.csv: Permission denied"), opened(tmp_path / "x.csv"):
        pass


ROWS = [b"%d,x%d\n" % (i, i) for i in range(20)]
WHOLE = b"a,b\n" + b"".join(ROWS)
FIRST, SECOND = b"a,b\n" + b"".join(ROWS[:10]) + b"10", b",x10\n" + b"".join(ROWS[11:])
GZIPPED = {
    "one member": (gzip.compress(WHOLE), True),
    "two members, cut in a line": (gzip.compress(FIRST) + gzip.compress(SECOND), True),
    "an empty member": (gzip.compress(FIRST) + gzip.compress(b"") + gzip.compress(SECOND), True),
    "a member a line": (gzip.compress(b"a,b\n") + b"".join(map(gzip.compress, ROWS)), True),
    "not compressed": (gzip.compress(WHOLE, 0), True),
    "zeros at the end": (gzip.compress(WHOLE) + bytes(64), False),
    "zeros between members": (gzip.compress(FIRST) + bytes(8) + gzip.compress(SECOND), False),
    "text at the end": (gzip.compress(WHOLE) + b"and more", False),
    "cut in the data": (gzip.compress(WHOLE)[:-20], False),
    "cut in the checksum": (gzip.compress(WHOLE)[:-5], False),
    "cut in the second header": (gzip.compress(WHOLE) + gzip.compress(b"20,x20\n")[:5], False),
    "another checksum": (gzip.compress(WHOLE)[:-8] + bytes(4) + gzip.compress(WHOLE)[-4:], False),
    "another length": (gzip.compress(WHOLE)[:-4] + bytes(4), False),
    "plain text": (WHOLE, False),
    "gzipped twice": (gzip.compress(gzip.compress(WHOLE)), False),
    "nothing": (b"", False),
}


@pytest.mark.parametrize("case", GZIPPED)
def test_a_gzip_file_is_read_alike_by_all_or_refused(tmp_path: Path, case: str) -> None:
    data, good = GZIPPED[case]
    path, kinds = tmp_path / "x.csv.gz", {"a": "int64", "b": "str"}
    path.write_bytes(data)
    if not good:
        with pytest.raises(DataError) as error:
            list(csv_blocks(path, kinds))
        assert len(error.value.message.removeprefix(str(path))) < 100
        return
    right = [(i, f"x{i}") for i in range(20)]
    assert [row for _, block in csv_blocks(path, kinds) for row in block.iter_rows()] == right
    for engine in ("pandas", "polars"):
        e = frames.load(engine)
        found = e.to_numpy(e.read_csv(path, kinds), ["a", "b"])
        assert list(zip(found["a"].tolist(), found["b"].tolist(), strict=True)) == right


def test_a_large_gzip_file_is_read_whole(tmp_path: Path) -> None:
    """Longer than all buffers, of data that compress well and data that do not."""
    data = os.urandom(300_000) + bytes(3_000_000) + os.urandom(70_000)
    (tmp_path / "x.gz").write_bytes(gzip.compress(data[:1_000_000]) + gzip.compress(data[1_000_000:]))
    for size in (1, 100_000, -1):
        with opened(tmp_path / "x.gz") as file:
            assert file.read(7) + file.read(size) + file.read() == data


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[]", "null", '"scale"', "[" * 100_000),
        *(
            f'{{"scale": {value}}}'
            for value in ('"much"', "NaN", "Infinity", "0", "-1", "null", "1" + "0" * 400)
        ),
        *('{"scale": 1, "test_scale": NaN}', '{"scale": 1, "x": "\ud800"}'),
    ],
)
def test_a_generator_json_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "generator.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match="not the file that the generator wrote"):
        generator_facts(tmp_path, GeneratorFacts)


def test_source_and_scale_of_files(tmp_path: Path) -> None:
    assert (origin(tmp_path, 100, 100).source, origin(tmp_path, 50, 100).scale) == ("official", 0.5)
    (tmp_path / "generator.json").write_text('{"scale": 0.25}')
    assert (origin(tmp_path, 50, 100).source, origin(tmp_path, 50, 100).scale) == ("generated", 0.25)


def test_token_ids_are_within_the_vocabulary() -> None:
    """All numbers up to twice the size of the vocabulary, with and without leading zeros."""
    whole = pl.Series([str(i) for i in range(2 * 119_547)])
    assert whole.str.contains(PATTERNS["tokens"]).to_list() == [i < 119_547 for i in range(len(whole))]
    for text in ("", "01", "-1", "+1", "1.0", "1\t", "\t1", "1\t\t2", "1 2", "1\n", "１"):
        assert not pl.Series([text]).str.contains(PATTERNS["tokens"])[0]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Limits the size of files, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 2_000])
@pytest.mark.parametrize("dataset", [booking, sigir_ecom, recsys2021, online_shoppers, clinc150, open_bandit])
def test_a_full_disk_is_reported_and_leaves_no_files(tmp_path: Path, dataset: ModuleType, size: int) -> None:
    options: dict[str, Any] = {"jobs": 1} if dataset is recsys2021 else {}
    scale = {recsys2021: 1e-6, sigir_ecom: 1e-5}.get(dataset, 1e-4)
    dataset.generate(tmp_path / "good", scale, 5, silent, **options)
    for make in (
        lambda: dataset.generate(tmp_path / "out", scale, 5, silent, **options),
        lambda: dataset.convert(tmp_path / "good", tmp_path / "out", silent),
    ):
        with pytest.raises(DataError, match="cannot write") as error, files_of_at_most(size):
            make()
        assert len(error.value.message) < 100 + len(str(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_the_slower_of_two_processes_says_that_the_folder_exists(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError) as refused, new_folder(out) as partial:
        (partial / "mine").touch()
        out.mkdir()
        (out / "file").touch()
    assert (refused.value.message, refused.value.hint) == (f"{out} exists", "another process has written it")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

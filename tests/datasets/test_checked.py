"""Cached verdicts: an unchanged folder is not read again, a changed folder always is."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from buzzer.datasets import checked as module
from buzzer.datasets import recsys2021
from buzzer.datasets.checked import checked
from buzzer.datasets.contract import silent
from buzzer.datasets.files import Files
from buzzer.errors import DataError, UsageError
from buzzer.models.api.context import GIVEN
from buzzer.models.recsys2021.task import RecSys2021
from buzzer.suite.cli.check import fingerprint
from buzzer.suite.cli.data import generate

OLD_NS = 1_700_000_000_123_456_789


class Counting:
    """The check of recsys2021, which counts its calls."""

    __module__ = recsys2021.check.__module__

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path, progress: Callable[[float, str], None]) -> Files:
        self.calls += 1
        return recsys2021.check(folder, progress)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checked") / "data"
    recsys2021.generate(out, 0.000001, 0, silent, test_scale=0.00004)
    time.sleep(0.15)  # a tick of the file system's clock
    return out


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_an_unchanged_folder_is_read_once(generated: Path, cache: Path) -> None:
    check = Counting()
    first, again = (checked(check, generated, cache, silent) for _ in range(2))
    assert check.calls == 1 and again == first == recsys2021.check(generated, silent)
    assert first.notes and first.source == "generated"


def same_size(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] = ord("2")  # the first token becomes 201 instead of 101
    path.write_bytes(data)


def same_size_and_times(path: Path) -> None:
    before = path.stat()
    same_size(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def other_file(path: Path) -> None:
    before = path.stat()
    data = path.read_bytes().replace(b"101", b"102", 1)
    path.unlink()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def more_files(path: Path) -> None:
    path.with_name("part-00001").write_bytes(path.read_bytes())


@pytest.mark.parametrize("change", [same_size, same_size_and_times, other_file, more_files])
def test_a_changed_file_is_checked_again(
    generated: Path, tmp_path: Path, cache: Path, change: Callable[[Path], None]
) -> None:
    folder, check = tmp_path / "data", Counting()
    shutil.copytree(generated, folder)
    time.sleep(0.15)
    before = checked(check, folder, cache, silent)
    change(folder / "train" / "part-00000")
    after = checked(check, folder, cache, silent)
    assert check.calls == 2 and after.fingerprint != before.fingerprint


def test_a_damaged_file_is_refused_after_a_good_verdict(generated: Path, tmp_path: Path, cache: Path) -> None:
    folder, check = tmp_path / "data", Counting()
    shutil.copytree(generated, folder)
    time.sleep(0.15)
    checked(check, folder, cache, silent)
    path = folder / "val" / "part-00000"
    path.write_bytes(b"x" + path.read_bytes()[1:])
    for _ in range(2):
        with pytest.raises(DataError, match="line 1, column text_tokens"):
            checked(check, folder, cache, silent)
    assert check.calls == 3


def test_a_file_that_changed_just_now_is_checked_again(generated: Path, tmp_path: Path, cache: Path) -> None:
    folder, check = tmp_path / "data", Counting()
    shutil.copytree(generated, folder)
    now = time.time_ns()
    os.utime(folder / "val" / "part-00000", ns=(now + 10**9, now + 10**9))
    for _ in range(2):
        checked(check, folder, cache, silent)
    assert check.calls == 2


def test_a_file_that_changes_while_it_is_read(generated: Path, tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(generated, folder)
    time.sleep(0.15)

    class Changing(Counting):
        __module__ = Counting.__module__

        def __call__(self, folder: Path, progress: Callable[[float, str], None]) -> Files:
            files = super().__call__(folder, progress)
            same_size(folder / "train" / "part-00000")
            return files

    checked(Changing(), folder, cache, silent)
    check = Counting()
    checked(check, folder, cache, silent)
    assert check.calls == 1


def test_a_verdict_of_another_check_or_a_damaged_one_is_ignored(
    generated: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = Counting()
    checked(check, generated, cache, silent)
    verdict = next((cache / "checks").iterdir())
    valid = json.loads(verdict.read_text())
    for damaged in ("", "{", json.dumps(valid | {"rows": {"train": "500"}}), json.dumps(valid | {"more": 1})):
        verdict.write_text(damaged)
        checked(check, generated, cache, silent)
    assert check.calls == 5
    monkeypatch.setattr(module, "digest", lambda facts: "of other source code")
    checked(check, generated, cache, silent)
    assert check.calls == 6


def test_the_check_works_without_a_cache(generated: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    check = Counting()
    for _ in range(2):
        assert checked(check, generated, tmp_path / "file", silent).rows
    assert check.calls == 2


def test_a_task_takes_scale_and_notes_from_the_files(generated: Path, cache: Path) -> None:
    data = RecSys2021().prepare(generated, cache, 1.0, 0, silent)
    assert (data.source, data.scale) == ("generated", 0.00004)
    assert data.notes == ("training parts of scale 1e-06, test of 4e-05", GIVEN)
    assert len(list((cache / "checks").iterdir())) == 1


def test_the_command_line_compares_records_with_files(
    generated: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUZZER_CACHE", str(cache))
    assert fingerprint(f"recsys2021={generated}") == (
        "recsys2021",
        recsys2021.check(generated, silent).fingerprint,
    )
    assert (cache / "data" / "checks").is_dir()


def test_the_command_line_generates_a_test_part_of_another_scale(tmp_path: Path) -> None:
    generate("recsys2021", tmp_path / "r", scale=0.000001, test_scale=0.00004, jobs=1)
    assert recsys2021.check(tmp_path / "r", silent).scale == 0.00004
    with pytest.raises(UsageError, match="booking has no test part with a separate scale"):
        generate("booking", tmp_path / "b", test_scale=0.1)
    with pytest.raises(UsageError, match="booking has no training part with a separate scale"):
        generate("booking", tmp_path / "b", train_scale=0.1)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="--test-scale"):
            generate("recsys2021", tmp_path / "r2", test_scale=bad)

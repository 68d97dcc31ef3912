"""Generated files in the cache: written by one process, and never used when damaged."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from buzzer import locks
from buzzer.datasets import booking
from buzzer.datasets.checked import Check, generated
from buzzer.datasets.contract import silent
from buzzer.datasets.files import Files
from buzzer.errors import DataError

Generate = Callable[[Path], None]


class Counting:
    """The generator of Booking, which counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, out: Path) -> None:
        self.calls += 1
        booking.generate(out, scale=0.0002, seed=0, progress=silent)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "booking-scale0.0002"


def get(folder: Path, generate: Generate, check: Check = booking.check) -> Files:
    return generated(folder, generate, check, folder.parent, silent)


def flip(folder: Path) -> None:
    """Changes a digit of a user id. The file is still valid, but another data set."""
    path = folder / "train_set.csv"
    head, _, rows = path.read_text().partition("\n")
    first, _, rest = rows.partition("\n")
    path.write_text(f"{head}\n{'1' if first[0] != '1' else '2'}{first[1:]}\n{rest}")


def cut(folder: Path) -> None:
    path = folder / "train_set.csv"
    path.write_bytes(path.read_bytes()[:-4])


def lose(folder: Path) -> None:
    (folder / "test_set.csv").unlink()


def break_generator(folder: Path) -> None:
    (folder / "generator.json").write_text('{"scale"')


def change_generator(folder: Path) -> None:
    facts = json.loads((folder / "generator.json").read_text())
    (folder / "generator.json").write_text(json.dumps(facts | {"scale": 1.0}))


def make_unreadable(folder: Path) -> None:
    """A folder in the place of a file, which root cannot read either."""
    (folder / "generator.json").unlink()
    (folder / "generator.json").mkdir()


def make_a_file(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("")


DAMAGE = {
    flip: "differ from the generated ones",
    cut: "differ from the generated ones",
    lose: "no test_set.csv",
    break_generator: "not the file that the generator wrote",
    change_generator: "differ from the generated ones",
    make_unreadable: "generator.json",
    make_a_file: "",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_generated_again(
    damage: Callable[[Path], None], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate = Counting()
    files = get(folder, generate)
    assert get(folder, generate) == files
    assert generate.calls == 1
    damage(folder)
    assert get(folder, generate) == files
    assert generate.calls == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{folder}: damaged: ") and line.endswith("; it is made again")
    assert DAMAGE[damage] in line


def test_a_process_that_waited_uses_the_files_of_another(folder: Path) -> None:
    generate, never = Counting(), Counting()
    lock = folder.with_name(f"{folder.name}.lock")
    made = list[Files]()

    def make(share: float, what: str) -> None:
        """The work of the other process."""
        if not made:
            assert what.startswith("waiting for process")
            generate(folder)
            made.append(booking.check(folder, silent))
            held.close()

    with ExitStack() as held:
        held.enter_context(locks.held(lock, print))
        assert generated(folder, never, booking.check, folder.parent, make) == made[0]
    assert (generate.calls, never.calls) == (1, 0)


def test_files_of_a_killed_process_are_removed(folder: Path) -> None:
    left, other = (folder.with_name(f".{name}.1.partial") for name in (folder.name, "another"))
    for path in (left, other):
        path.mkdir(parents=True)
    get(folder, Counting())
    assert (left.exists(), other.exists()) == (False, True)


def test_a_generator_that_fails_leaves_no_files(folder: Path) -> None:
    def fail(out: Path) -> None:
        raise DataError("no space")

    with pytest.raises(DataError, match="no space"):
        get(folder, fail)
    assert [path.name for path in folder.parent.iterdir()] == [f"{folder.name}.lock"]
    assert get(folder, Counting()).rows["train"]

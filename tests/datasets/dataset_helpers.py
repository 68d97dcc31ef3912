"""What several tests of data sets share."""

from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path], object]  # changes the files in a folder


def edit_lines(name: str, change: Callable[[list[str]], object]) -> Damage:
    """Changes the list of lines of a text file, with their ends."""

    def damage(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines(keepends=True)
        change(lines)
        (folder / name).write_text("".join(lines))

    return damage


def set_field(name: str, line: int, column: int, value: str, separator: str = ",") -> Damage:
    """Replaces a field. line: from 1; column: from 0."""

    def change(lines: list[str]) -> None:
        fields = lines[line - 1].rstrip("\n").split(separator)
        fields[column] = value
        lines[line - 1] = separator.join(fields) + "\n"

    return edit_lines(name, change)


def cut(name: str, drop: int) -> Damage:
    """Removes the last `drop` bytes of a file."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-drop])


def write(name: str, text: str) -> Damage:
    """Replaces the content of a file."""
    return lambda folder: (folder / name).write_text(text)

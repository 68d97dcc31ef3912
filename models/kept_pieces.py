"""Pieces of a run's work in a folder, each complete or absent.

The harness keeps the folder of a run that was interrupted (`RunContext.partial`), so that the run goes on from its last whole piece.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from buzzer import manifest

UNFINISHED = ".new"


class KeptPieces:
    """The pieces of one run or fit, in `root`. A piece is a folder with its files and their manifest.

    A piece is written under another name and gets its own when it is complete. The first question for a piece reads its files: a piece
    with a missing or changed file, as after a power failure, is removed with a notice.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, bool] = {}

    def path(self, name: str) -> Path:
        """The folder of a piece."""
        return self.root / name

    def __contains__(self, name: str) -> bool:
        if name not in self._known:
            self._known[name] = self._is_whole(name)
        return self._known[name]

    def _is_whole(self, name: str) -> bool:
        folder, new = self.path(name), self._new(name)
        if manifest.is_whole(folder):
            return True
        if manifest.problem(new):
            return False
        new.rename(folder)  # the process was killed while it replaced the piece
        return True

    def _new(self, name: str) -> Path:
        return self.root / f"{name}{UNFINISHED}"

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """An empty folder for the files of a piece. When the block ends, it replaces the piece; if the block raises, the piece stays as it
        was."""
        new = self._new(name)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        manifest.seal(new)
        shutil.rmtree(self.path(name), ignore_errors=True)
        new.rename(self.path(name))
        self._known[name] = True

    def remove(self, name: str) -> None:
        """Delete a piece, if there is one."""
        self._known[name] = False
        for folder in (self._new(name), self.path(name)):
            shutil.rmtree(folder, ignore_errors=True)

    def clear(self) -> None:
        """Delete all pieces and the root."""
        self._known.clear()
        shutil.rmtree(self.root, ignore_errors=True)

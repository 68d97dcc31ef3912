"""Pieces of a run's work in a folder, each complete or absent.

The harness keeps the folder of a run that was interrupted (`RunContext.partial`), so that the run goes on from its last whole piece.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DIGESTS, UNFINISHED = "digests.json", ".new"


class KeptPieces:
    """The pieces of one run, in `root`. A piece is a folder with its files and their sha256.

    A piece is written under another name and gets its own when it is complete. The first question for a piece reads its files: a piece
    with a missing or changed file counts as absent, as after a power failure.
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
        folder = self.path(name)
        try:
            wanted = json.loads((folder / DIGESTS).read_text())
            return bool(wanted) and wanted == digests(folder)
        except (OSError, ValueError):
            return False

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """An empty folder for the files of a piece. The piece is complete when the block ends, and absent if the block raises."""
        new = self.root / f"{name}{UNFINISHED}"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        (new / DIGESTS).write_text(json.dumps(digests(new)))
        shutil.rmtree(self.path(name), ignore_errors=True)
        new.rename(self.path(name))
        self._known[name] = True

    def remove(self, name: str) -> None:
        """Delete a piece, if there is one."""
        self._known[name] = False
        shutil.rmtree(self.path(name), ignore_errors=True)

    def clear(self) -> None:
        """Delete all pieces and the root."""
        self._known.clear()
        shutil.rmtree(self.root, ignore_errors=True)


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of each file in a folder, without `DIGESTS`."""
    by_name = {}
    for path in sorted(folder.iterdir()):
        if path.name != DIGESTS:
            with path.open("rb") as file:
                by_name[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return by_name

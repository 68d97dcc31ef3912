"""Folders that take long to write. What is written stays if the process ends early, and the next call goes on with it."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, Self, TypeVar

from pydantic import BaseModel, ValidationError

from buzzer import locks
from buzzer.datasets.contract import Progress
from buzzer.datasets.files import WRITE_ERRORS, cannot_write
from buzzer.errors import DataError

PLAN, STEPS = ".plan.json", ".steps.jsonl"


class Step(BaseModel):
    """A completed step of the work on a folder. Subclasses add facts."""

    sizes: dict[str, int]  # file that the step wrote, relative to the folder -> its bytes after the step


S = TypeVar("S", bound=Step)


class Journal(Generic[S]):
    """The completed steps of a folder, one JSON object per line. Files of the folder only grow."""

    def __init__(self, folder: Path, kind: type[S]) -> None:
        self.folder, self.steps = folder, read_steps(folder / STEPS, kind)

    def add(self, step: S) -> None:
        """Append a step, after its files are written."""
        with (self.folder / STEPS).open("a", encoding="utf-8") as file:
            file.write(step.model_dump_json() + "\n")
        self.steps.append(step)

    def restore(self) -> Self:
        """Make the files as they were after the last step. If one is shorter than then, delete everything and begin again."""
        sizes = {name: size for step in self.steps for name, size in step.sizes.items()}
        present = {path: path.stat().st_size for path in self.folder.rglob("*") if path.is_file()}
        if any(present.get(self.folder / name, 0) < size for name, size in sizes.items()):
            self.steps, sizes = [], {}
        for path in present.keys() - {self.folder / PLAN, self.folder / STEPS}:
            size = sizes.get(str(path.relative_to(self.folder)), 0)
            if size:
                os.truncate(path, size)
            else:
                path.unlink()
        text = "".join(step.model_dump_json() + "\n" for step in self.steps)  # without a line that was cut
        (self.folder / STEPS).write_text(text, encoding="utf-8")
        return self


def read_steps(path: Path, kind: type[S]) -> list[S]:
    """The steps in a journal, up to the first line that is not complete or is damaged."""
    steps: list[S] = []
    with suppress(FileNotFoundError, ValidationError):
        for line in path.read_bytes().splitlines():
            steps.append(kind.model_validate_json(line))
    return steps


@contextmanager
def unfinished_folder(out: Path, plan: str, progress: Progress) -> Iterator[Path]:
    """A folder beside `out` that is renamed to `out` when the block succeeds, and stays when it fails or the process is killed.

    The next call with the same `plan`, a text that determines the content, gets the same folder; a call with another plan an empty
    one. One process at a time writes it, and others wait. Raises DataError if the files cannot be written, or if another process
    has written `out` in the meantime.
    """
    folder, lock = (out.with_name(f".{out.name}.{suffix}") for suffix in ("unfinished", "unfinished.lock"))
    with locks.held(lock, lambda message: progress(0.0, message)):
        if os.path.lexists(out):
            raise DataError(f"{out} exists", "another process has written it")
        try:
            if not (folder / PLAN).is_file() or (folder / PLAN).read_bytes() != plan.encode():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                (folder / PLAN).write_text(plan, encoding="utf-8")
            yield folder
            remove([folder / STEPS, folder / PLAN])
            folder.rename(out)
        except WRITE_ERRORS as error:
            raise kept(cannot_write(out, error), folder) from error
        remove([lock])


def remove(paths: Sequence[Path]) -> None:
    """Delete the files that exist."""
    for path in paths:
        path.unlink(missing_ok=True)


def kept(error: Exception, folder: Path) -> Exception:
    """The error with a hint that the files stay, if it is a DataError."""
    if not isinstance(error, DataError):
        return error
    return DataError(error.message, f"{error.hint}; the same command goes on, or delete {folder}")

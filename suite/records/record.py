"""Reading and writing records: one JSON file per run."""

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from buzzer.errors import DataError, UsageError
from buzzer.suite.escape import printable
from buzzer.suite.records import layout, strict_json
from buzzer.suite.records.schema import Record, wrong_fields

TRIAL_BYTES = 1 << 16  # more than a record has
NAMED = 40  # characters of a file's name in that of its temporary file, which must not be too long


def content_hash(fields: dict[str, Any]) -> str:
    """sha256 of a record's JSON fields without `content_hash` itself."""
    body = {k: v for k, v in fields.items() if k != "content_hash"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write(record: Record, folder: Path) -> Path:
    """Write `record` atomically to `folder`/<task>/<machine>/. Returns the path.

    Raises DataError if the file cannot be written (full disk, no permission).
    """
    fields = record.model_dump(mode="json")
    fields["content_hash"] = content_hash(fields)
    path = folder / layout.relative_path(record)
    write_text(path, json.dumps(fields, indent=1) + "\n")
    return path


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. Raises DataError if it cannot be written (full disk, no permission).

    What is not a plain file, such as /dev/stdout, a pipe or a link, is written in place: a rename would replace it.
    """
    temporary = path.with_name(f".{path.name[:NAMED]}.{os.getpid()}.tmp")
    try:
        if in_place(path):
            path.write_text(text, encoding="utf-8")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror}",
            "free some space, or choose another folder or file (--out)",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def in_place(path: Path) -> bool:
    """Whether a path is not a plain file, such as /dev/stdout, a pipe or a link."""
    return path.is_symlink() or (path.exists() and not path.is_file())


def check_target(file: Path) -> None:
    """Raises UsageError for a folder, and DataError for a file whose folder cannot be written."""
    if file.is_dir():
        raise UsageError(f"{file} is a folder", "name a file")
    if not in_place(file):
        check_writable(file.parent)


def check_writable(folder: Path) -> None:
    """Create the folder if needed and try to write to it. Raises DataError if that fails."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"cannot write {folder}: it is a file", "name a folder")
    trial = folder / f".{os.getpid()}.trial"
    write_text(trial, " " * TRIAL_BYTES)
    trial.unlink()


def read(path: Path) -> Record:
    """The record in the file `path`. Raises DataError with one printable line that names the invalid fields."""
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a pipe would block
            raise DataError(printable(f"{path}: not a regular file"), "it is a pipe or a device")
        fields = strict_json.parse(path.read_text(encoding="utf-8"))
        record = Record.model_validate(fields)
        written = content_hash(fields)
    except OSError as error:
        raise DataError(printable(f"{path}: {error.strerror}")) from error
    except ValidationError as error:
        raise DataError(printable(f"{path}: {wrong_fields(error)}")) from error
    except (ValueError, RecursionError) as error:
        cause = "nested too deep" if isinstance(error, RecursionError) else error
        raise DataError(
            printable(f"{path}: not a record: {cause}"), "the file is truncated or was edited by hand"
        ) from error
    if record.content_hash != written:
        raise DataError(
            printable(f"{path}: content_hash does not match: the record was edited after it was written")
        )
    return record


def paths(sources: Iterable[Path]) -> list[Path]:
    """The record files among files and folders. The files of one folder are in the order in which the runs ended.

    Folders are searched at any depth, except for hidden files and folders named `local` or `files`. A folder that cannot be read is
    among the files, so that it is reported like a file that cannot be read.
    """
    files: list[Path] = []
    for source in sources:
        files += _inside(source) if source.is_dir() else [source]
    return files


def _inside(folder: Path) -> list[Path]:
    """The record files below `folder`. Their names begin with the time of the run, so that the order does not depend on the layout."""
    skipped = {layout.LOCAL, layout.FILES}
    files: list[Path] = []

    def unreadable(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # else it was removed meanwhile
            files.append(Path(error.filename))

    for root, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if name not in skipped]
        files += [Path(root, name) for name in names if name.endswith(".json") and name[0] != "."]
    return sorted(files, key=lambda path: (path.name, path))

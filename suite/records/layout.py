"""The layout of a folder of records.

    <folder>/<task>/<machine>/<time>-<task>-<job>-<engine>-<backend>-<run>.json    records
    <folder>/files/<run>/                                                          submissions and logs of the run

`<run>` is the first 8 characters of the run_id. Folders of older versions hold their records at the top; both can be read.
"""

import hashlib
import re
from pathlib import Path

from buzzer.suite.records import machine
from buzzer.suite.records.schema import Record

FILES, LOCAL = "files", "local"  # folders below a folder of records that are not searched for records
MAX_LENGTH = 64  # maximum number of characters of a folder's name


def relative_path(record: Record) -> Path:
    """The path of a record below its folder of records."""
    task = task_folder(record.task)
    parts = (
        record.created.strftime("%Y%m%dT%H%M%S"),
        task,
        record.job,
        record.engine,
        record.backend,
        *((record.precision,) if record.job == "bench" else ()),
        run_name(record.run_id),
    )
    return Path(task, machine_folder(record), f"{'-'.join(parts)}.json")


def task_folder(task: str) -> str:
    """The name of the folder with the records of a task: the task's name, if it can be the name of a folder.

    >>> task_folder("recsys2021"), task_folder("files")
    ('recsys2021', 'files-3d7db37d')
    """
    safe = re.sub(r"[^0-9A-Za-z._-]+", "-", task).lstrip(".")
    changed = safe != task or safe in ("", FILES, LOCAL) or len(safe) > MAX_LENGTH
    return _shortened(safe, task) if changed else safe


def machine_folder(record: Record) -> str:
    """The name of the folder with the records of a machine, such as `amd-epyc-avx2-2-cores-24-gib`."""
    return _folder_of(machine.describe(record.machine))


def machine_folders(record: Record) -> set[str]:
    """The names that the folder may have: of `machine_folder`, and the one that older versions gave to a machine with one core."""
    line = machine.describe(record.machine)
    return {_folder_of(line), _folder_of(line.replace(", 1 core,", ", 1 cores,"))}


def _folder_of(described: str) -> str:
    line = described.removesuffix(", no GPU")
    name = re.sub(r"[^0-9a-z]+", "-", line.lower()).strip("-")
    return _shortened(name, line) if len(name) > MAX_LENGTH else name


def _shortened(name: str, text: str) -> str:
    """`name`, truncated, with a hash of `text`, so that different names stay different."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name[: MAX_LENGTH - 9].strip('-')}-{digest}".lstrip("-")


def root(path: Path, record: Record) -> Path:
    """The folder of records that the file `path` of a record belongs to."""
    path = path.absolute()
    folder = path.parent
    inside = folder.parent.name == task_folder(record.task) and folder.name in machine_folders(record)
    return folder.parents[1] if inside else folder


def run_name(run_id: str) -> str:
    """The part of a run_id that names files and folders of the run."""
    return run_id[:8]


def files(folder: Path, run_id: str) -> Path:
    """The folder with the submission and the logs of a run, in a folder of records."""
    return folder / FILES / run_name(run_id)


def same_run(folder: Path, task: str, run_id: str) -> list[Path]:
    """The record files in a folder of records whose name says that they are of the run `run_id` of `task`."""
    name = f"[!.]*-{run_name(run_id)}.json"
    return sorted([*folder.glob(name), *folder.glob(f"{task_folder(task)}/*/{name}")])

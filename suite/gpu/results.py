"""The results of the GPU suite: a summary, and an archive of all records and the ends of all logs. Standard library only."""

import io
import json
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LOG_BYTES = 100_000  # the archive contains at most this many bytes from the end of each log
PACK, SUMMARY = "gpu-suite.tar.xz", "summary"
CACHES = "caches.tar.xz"
# Of the cache folder, what another machine with such a GPU can use: tuned kernels, and what CuPy and NVRTC have compiled.
KEPT = ("kernels", "compiled/cupy", "compiled/cuda")


@dataclass
class StepResult:
    """The status of a step: `ok`, `unsupported` (the machine or installation lacks something), `failed`, `timeout` or `skipped`."""

    name: str
    status: str
    seconds: float = 0.0
    cpu_s: float = 0.0  # CPU seconds of the step and of all processes that it started and waited for
    message: str = ""
    records: dict[str, int] = field(default_factory=dict)  # outcome -> number of records

    def line(self) -> str:
        """The result as one line of text."""
        return f"{self.name}: {self.status}, {self.seconds:.1f} s  {self.message}"


@dataclass(frozen=True)
class WrittenRecords:
    """The records that a step has written: how many of each outcome, and the message of the first that is not `ok`."""

    outcomes: dict[str, int]
    message: str = ""


def record_files(folder: Path) -> set[Path]:
    """The record files below a folder, without submissions and other files of runs."""
    return {path for path in folder.rglob("*.json") if "files" not in path.relative_to(folder).parts[:-1]}


def read_records(paths: Iterable[Path]) -> WrittenRecords:
    """A summary of the records in these files."""
    records: list[dict[str, Any]] = [json.loads(path.read_text()) for path in sorted(paths)]
    outcomes = dict(Counter(record["outcome"] for record in records))
    for record in records:
        if record["outcome"] != "ok":
            variant = " ".join(record[key] for key in ("job", "engine", "backend") if record.get(key))
            return WrittenRecords(outcomes, f"{variant}: {record.get('message', '')}")
    return WrittenRecords(outcomes)


def read_summary(path: Path) -> list[StepResult]:
    """The results in a summary's JSON file."""
    return [StepResult(**step) for step in json.loads(path.read_text())["steps"]]


def write(out: Path, work: Path, results: Sequence[StepResult]) -> None:
    """Write the summary as JSON and Markdown, and the pack of both, all records and the ends of all logs."""
    facts = {"python": sys.version.split()[0], "steps": [asdict(result) for result in results]}
    table = ["| step | status | s | CPU s | what |", "| --- | --- | --- | --- | --- |"]
    table += [
        f"| {r.name} | {r.status} | {r.seconds:.1f} | {r.cpu_s:.1f} | {r.message.replace('|', '/')} |"
        for r in results
    ]
    texts = {f"{SUMMARY}.json": json.dumps(facts, indent=1) + "\n", f"{SUMMARY}.md": "\n".join(table) + "\n"}
    for name, text in texts.items():
        _replace(out / name, text.encode())
    _replace(out / PACK, _packed(work, texts))


def pack_caches(target: Path, cache: Path) -> None:
    """Write a .tar.xz of the folders KEPT in a cache folder, those that exist."""
    pack(target, cache, [name for name in KEPT if (cache / name).is_dir()])


def pack(target: Path, folder: Path, names: Iterable[str]) -> None:
    """Write a .tar.xz of what has these names in a folder, atomically."""
    partial = target.with_name(f".{target.name}.partial")
    with tarfile.open(partial, "w:xz") as tar:
        for name in names:
            tar.add(folder / name, arcname=name)
    partial.replace(target)


def _packed(work: Path, texts: Mapping[str, str]) -> bytes:
    """A .tar.xz of the texts, every record, and the last LOG_BYTES of every log."""
    members = {name: text.encode() for name, text in texts.items()}
    for path in sorted([*record_files(work / "records"), *work.glob("logs/*.log")]):
        content = path.read_bytes()
        members[str(path.relative_to(work))] = content[-LOG_BYTES:] if path.suffix == ".log" else content
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _replace(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)

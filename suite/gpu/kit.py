"""What a GPU machine without network is given: the calls of docs/gpu.md, what each takes along, and `make gpukit`'s data and fits.

python -m buzzer.suite.gpu.kit seed     .gpukit/seed.tar.xz: data and fits of steps.SEED, by this very code
python -m buzzer.suite.gpu.kit sizes    MiB that each call takes along; exit code 1 where one is too large
"""

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from buzzer.errors import BuzzerError, DataError
from buzzer.suite.gpu.steps import SEED

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "gpu.md"
KIT = ROOT / ".gpukit"
MOST_BYTES, MOST_LETTERS = 64 << 20, 2000  # of a call: what travels, and its command


@dataclass(frozen=True)
class Call:
    """One command line in the repository's root on the GPU machine, and the ignored paths that it takes along."""

    name: str
    takes: tuple[str, ...]
    limit_s: int
    command: str


def calls(page: Path = PAGE) -> dict[str, Call]:
    """The calls of the page by name: headings `### Call NAME`, below each `Takes along: ...; limit N s` and a block of shell."""
    pattern = r"^### Call ([\w-]+)\n.*?^Takes along: (.*?); limit (\d+) s\..*?^```sh\n(.*?)^```"
    found = re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL)
    return {
        name: Call(name, tuple(re.findall(r"`([^`]+)`", takes)), int(limit), command.strip())
        for name, takes, limit, command in found
    }


def tree(root: Path = ROOT) -> list[Path]:
    """What travels with every call: tracked files, and untracked ones that git does not ignore."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return [path for name in names if name and ((path := root / name).is_file() or path.is_symlink())]


def size(paths: list[Path]) -> int:
    """Bytes of files, and of all files in folders."""
    files = [
        f for path in paths for f in (path.rglob("*") if path.is_dir() and not path.is_symlink() else [path])
    ]
    return sum(f.lstat().st_size for f in files if not f.is_dir() or f.is_symlink())


def sizes() -> int:
    """Print what each call takes along; 1 where one is too large or lacks a path."""
    base, bad = size(tree()), False
    for call in calls().values():
        missing = [path for path in call.takes if not (ROOT / path).exists()]
        total = base + size([ROOT / path for path in call.takes if path not in missing])
        told = f"missing: {', '.join(missing)}" if missing else ""
        told = f"more than {MOST_BYTES >> 20} MiB" if total > MOST_BYTES else told
        print(f"{call.name:10} {total / 2**20:5.1f} MiB  {', '.join(call.takes)}  {told}".rstrip())
        bad |= bool(told)
    return int(bad)


def seed(cache: Path = KIT / "cache", target: Path = KIT / "seed.tar.xz") -> int:
    """Make data and fits of SEED in `cache`, whatever is there already is taken, and pack them."""
    folders = [folder for task, options in SEED.items() for folder in made(task, options, cache)]
    for old in cache.glob("fits/*"):
        if old.is_dir() and old not in folders:
            shutil.rmtree(old)  # of sources that have changed since
    names = [str(folder.relative_to(cache)) for folder in folders]
    if target.is_file() and packed_names(target) == set(names):
        return 0
    aside = target.with_suffix(".partial")
    with tarfile.open(aside, "w:xz") as tar:
        for name in names:
            tar.add(cache / name, arcname=name)
    aside.replace(target)
    return 0


def packed_names(archive: Path) -> set[str]:
    with tarfile.open(archive) as tar:
        return {"/".join(Path(name).parts[:2]) for name in tar.getnames()}


def made(task: str, options: tuple[str, ...], cache: Path) -> tuple[Path, Path]:
    """The folders of a task's data and fit, made as `buzzer run` makes them with these options."""
    from buzzer.suite.report.display import observing
    from buzzer.suite.requests import RunRequest
    from buzzer.suite.run import fits, resolve, runner, tasks

    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float)
    parser.add_argument("--set", action="append")
    given = parser.parse_args(options)
    params = dict(pair.split("=", 1) for pair in given.set or [])
    plan = resolve.run_plan(RunRequest(task, scale=given.scale, params=params))
    (selection,), (_, run) = plan.selections, plan.runs[0]
    with observing(None) as observer:
        data = tasks.prepare(selection, None, observer, cache)
        record = runner.fit(run, data, cache, lambda phase, elapsed: observer.phase(run, phase, elapsed))
    if record is not None and record.outcome != "ok":
        raise DataError(f"the fit of {task} ended {record.outcome}: {record.message}", record.hint)
    return data.folder, fits.folder(run, data, cache)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("seed", "sizes"))
    try:
        return {"seed": seed, "sizes": sizes}[parser.parse_args().what]()
    except BuzzerError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""The uploads to a GPU machine without network: the calls of docs/gpu.md, and the data and fits of `make gpukit`.

python -m buzzer.suite.gpu.kit seed     make .gpukit/seed.tar.xz: data and fits of steps.SEED, by the code in this tree
python -m buzzer.suite.gpu.kit sizes    print the MiB that each call uploads; exit code 1 if one is too large
"""

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from buzzer.errors import BuzzerError, DataError
from buzzer.suite.gpu.results import CACHES, pack
from buzzer.suite.gpu.steps import SEED

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "gpu.md"
KIT = ROOT / ".gpukit"
MOST_BYTES = 60 << 20  # of a call's upload; one of 62.6 MiB was refused where the limit is said to be 64 MiB


@dataclass(frozen=True)
class Call:
    """One command line in the repository's root on the GPU machine.

    `takes`: paths ignored by git that are uploaded with the tree.
    """

    name: str
    takes: tuple[str, ...]
    limit_s: int
    command: str


def calls(page: Path = PAGE) -> dict[str, Call]:
    """The calls on the page, by name.

    Each has a heading `### Call NAME`, below it a line `Takes along: ...; limit N s` and a block of shell.
    """
    pattern = r"^### Call ([\w-]+)\n.*?^Takes along: (.*?); limit (\d+) s\..*?^```sh\n(.*?)^```"
    matches = re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL)
    return {
        name: Call(name, tuple(re.findall(r"`([^`]+)`", takes)), int(limit), command.strip())
        for name, takes, limit, command in matches
    }


def tree(root: Path = ROOT) -> list[Path]:
    """The files that are uploaded with every call: tracked files, and untracked files that git does not ignore."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return [path for name in names if name and ((path := root / name).is_file() or path.is_symlink())]


def size(paths: list[Path]) -> int:
    """The bytes of files, and of all files in folders."""
    files = [
        f for path in paths for f in (path.rglob("*") if path.is_dir() and not path.is_symlink() else [path])
    ]
    return sum(f.lstat().st_size for f in files if not f.is_dir() or f.is_symlink())


def sizes() -> int:
    """Print the size of each call's upload. Returns 1 if one is too large or lacks a path, else 0."""
    base, bad = size(tree()), False
    for call in calls().values():
        missing = [path for path in call.takes if not (ROOT / path).exists()]
        total = base + size([ROOT / path for path in call.takes if path not in missing])
        problem = f"missing: {', '.join(missing)}" if missing else ""
        problem = f"more than {MOST_BYTES >> 20} MiB" if total > MOST_BYTES else problem
        print(f"{call.name:10} {total / 2**20:5.1f} MiB  {', '.join(call.takes)}  {problem}".rstrip())
        bad |= bool(problem)
    return int(bad)


def seed(cache: Path = KIT / "cache", target: Path = KIT / "seed.tar.xz") -> int:
    """Make the data and fits of SEED in `cache`, except those that it has, and pack them into `target`. Returns 0."""
    folders = [folder for task, options in SEED.items() for folder in make(task, options, cache)]
    for old in cache.glob("fits/*"):
        if old.is_dir() and old not in folders:
            shutil.rmtree(old)  # made from older sources
    if not (kept := target.with_name(CACHES)).is_file():
        pack(kept, cache, ())  # empty, until a run returns one
    names = [str(folder.relative_to(cache)) for folder in folders]
    if target.is_file() and packed_names(target) == set(names):
        return 0
    pack(target, cache, names)
    return 0


def packed_names(archive: Path) -> set[str]:
    """The folders in an archive of data and fits, as `data/...` and `fits/...`."""
    with tarfile.open(archive) as tar:
        return {"/".join(Path(name).parts[:2]) for name in tar.getnames()}


def make(task: str, options: tuple[str, ...], cache: Path) -> tuple[Path, Path]:
    """Make a task's data and fit as `buzzer run` does with these options. Returns their folders."""
    from buzzer.suite.report.display import observing
    from buzzer.suite.requests import RunRequest
    from buzzer.suite.run import fits, resolve, runner, task_runs

    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float)
    parser.add_argument("--set", action="append")
    parsed = parser.parse_args(options)
    params = dict(pair.split("=", 1) for pair in parsed.set or [])
    plan = resolve.run_plan(RunRequest(task, scale=parsed.scale, params=params))
    (selection,), (_, run) = plan.selections, plan.runs[0]
    with observing(None) as observer:
        data = task_runs.prepare(selection, None, observer, cache)
        record = runner.fit(run, data, cache, partial(observer.phase, run))
    if record is not None and record.outcome != "ok":
        raise DataError(f"the fit of {task} ended {record.outcome}: {record.message}", record.hint)
    return data.folder, fits.folder(run, data, cache)


def main() -> int:
    """Run the command line. Returns the exit code."""
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

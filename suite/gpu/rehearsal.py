"""`make rehearsal`: runs the calls of docs/gpu.md on this machine under the conditions of a GPU machine without network.

Each call runs in a copy of the tree (tracked files, untracked files that git does not ignore, and the paths that the call takes along),
with its own home and temporary folders, without PYTHONPATH, and with a Python that has the packages of such a machine. The steps run
with --anyway: their CPU parts must end `ok`, their GPU parts `unsupported` with the driver's reason. Exit code 1 if anything ended
otherwise.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from buzzer.engine.device import cuda_problem
from buzzer.suite.gpu.kit import KIT, MOST_BYTES, ROOT, Call, calls, size, tree
from buzzer.suite.gpu.results import SUMMARY, StepResult, read_summary

# The suite's command in a call, up to the end of its line. Options are added at the end, because the last of repeated options is used.
SUITE = re.compile(r"-m buzzer\.suite\.gpu\.suite .*")
GOOD = {"ok", "unsupported"}
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class CallResult:
    """The outcome of a call, and the folder of its results."""

    code: int
    seconds: float
    out: Path


def stage(call: Call, root: Path) -> int:
    """Make a copy of the tree with the files that a call uploads, and the parts of the kit of earlier calls, which the machine keeps.
    Returns the bytes copied."""
    root.mkdir(parents=True, exist_ok=True)
    for old in (path for path in root.iterdir() if path.name != KIT.name):
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    sources = [*tree(), *(ROOT / path for path in call.takes)]
    for source in sources:
        target = root / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir() and not source.is_symlink():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target, follow_symlinks=False)
    return size(sources)


def run(call: Call, machine: Path, python: Path, options: Sequence[str]) -> CallResult:
    """Run a call in the folder `machine`, with these options added to its steps."""
    out = machine / "out" / call.name
    for folder in (out, machine / "home", machine / "tmp"):
        folder.mkdir(parents=True, exist_ok=True)
    environment = {
        "PATH": os.pathsep.join([str(python.parent), SYSTEM_PATH]),
        "HOME": str(machine / "home"),
        "TMPDIR": str(machine / "tmp"),
        "GPUKIT_STORE": str(machine / "tmp" / "gpukit"),
        "GPUKIT_SITE": str(machine / "tmp" / "gpukit-site"),
        "OUT": str(out),
    }
    command = SUITE.sub(lambda match: f"{match[0]} --anyway {' '.join(options)}", call.command)
    began = time.monotonic()
    with (machine / f"{call.name}.log").open("wb") as log:
        code = subprocess.run(
            ["bash", "-c", command],
            cwd=machine / "tree",
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    return CallResult(code, time.monotonic() - began, out)


def problems(steps: Sequence[StepResult], reason: str) -> list[str]:
    """The steps with an unexpected status. reason: why there is no GPU, the only valid reason to be unsupported."""
    bad = []
    for step in steps:
        endings = {step.status, *step.records}
        explained = any(part in step.message for part in (reason, " skipped", "not on the PATH"))
        if endings - GOOD or ("unsupported" in endings and not explained):
            bad.append(f"{step.name}: {step.status}: {step.message}")
    return bad


def rehearse(call: Call, machine: Path, python: Path, options: Sequence[str]) -> list[str]:
    """Stage and run a call, print its summary, and return its problems."""
    bad, bytes_sent = list[str](), stage(call, machine / "tree")
    result = run(call, machine, python, options)
    seconds = f"{result.seconds:.0f} s, {bytes_sent / 2**20:.1f} MiB sent"
    print(f"call {call.name}: exit code {result.code}, {seconds}", flush=True)
    if bytes_sent > MOST_BYTES:
        bad.append(f"{call.name}: {bytes_sent} bytes are sent")
    summary = result.out / f"{SUMMARY}.json"
    if summary.is_file():
        print(summary.with_suffix(".md").read_text(), flush=True)
        bad += problems(read_summary(summary), cuda_problem())
    elif result.code:
        bad.append(f"{call.name}: exit code {result.code}: see {machine / call.name}.log")
    return bad


def main() -> int:
    """Rehearse the calls that the command line names. Returns 1 if there was a problem, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", type=Path, required=True, help="the machine's python3")
    parser.add_argument(
        "--calls", default="unpack-1,unpack-2,unpack-3,bert-1,bert-2,frames", help="separated by commas"
    )
    parser.add_argument(
        "--machine", type=Path, help="folder for the machine's files [a new temporary folder]"
    )
    parser.add_argument("--stretch", default="10", help="factor of all limits: this machine is slower [10]")
    parser.add_argument("--test-scale", default="0.002", help="scale of the large test [0.002]")
    parser.add_argument("--only", help="steps to run instead of the calls' steps")
    arguments = parser.parse_args()
    machine = (arguments.machine or Path(tempfile.mkdtemp(prefix="buzzer-rehearsal-"))).resolve()
    options = ["--stretch", arguments.stretch, "--test-scale", arguments.test_scale, "--minutes", "600"]
    options += ["--only", shlex.quote(arguments.only)] if arguments.only else []
    all_calls, bad = calls(), list[str]()
    for name in arguments.calls.split(","):
        bad += rehearse(all_calls[name], machine, arguments.python.absolute(), options)
    print("\n".join(bad) if bad else "every step ended ok, or unsupported")
    print(f"the machine's files: {machine}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())

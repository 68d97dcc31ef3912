"""`make rehearsal`: the calls of docs/gpu.md on this machine, as a GPU machine without network gets them.

Each call runs in a copy of the tree (tracked files, untracked ones that git does not ignore, and the paths that it takes along), with a
home and a temporary folder of their own and without PYTHONPATH, by a Python that has what such a machine has. Steps run --anyway: their
CPU parts must end ok, their GPU parts unsupported, with the driver's reason. Exit code 1: something ended otherwise.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from buzzer.engine.device import cuda_problem
from buzzer.suite.gpu.kit import MOST_BYTES, ROOT, Call, calls, size, tree
from buzzer.suite.gpu.suite import SUMMARY

SUITE = re.compile(
    r"-m buzzer\.suite\.gpu\.suite .*"
)  # to the end of its line: of an option told twice the last counts
GOOD = ("ok", "unsupported")


def stage(call: Call, root: Path) -> int:
    """Make the copy of the tree that the call finds, and nothing beside it; the bytes that travelled."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    sources = [*tree(), *(ROOT / path for path in call.takes)]
    for source in sources:
        target = root / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir() and not source.is_symlink():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target, follow_symlinks=False)
    return size(sources)


def run(call: Call, machine: Path, python: Path, options: Sequence[str]) -> tuple[int, float, Path]:
    """Exit code, seconds, and the folder of results of one call."""
    out = machine / "out" / call.name
    for folder in (out, machine / "home", machine / "tmp"):
        folder.mkdir(parents=True, exist_ok=True)
    environment = {
        "PATH": os.pathsep.join(
            [str(python.parent), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
        ),
        "HOME": str(machine / "home"),
        "TMPDIR": str(machine / "tmp"),
        "GPUKIT_STORE": str(machine / "tmp" / "gpukit"),
        "GPUKIT_SITE": str(machine / "tmp" / "gpukit-site"),
        "OUT": str(out),
    }
    command = SUITE.sub(lambda found: f"{found[0]} --anyway {' '.join(options)}", call.command)
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
    return code, time.monotonic() - began, out


def judged(steps: Sequence[dict[str, Any]], reason: str) -> list[str]:
    """What did not end as it should; `reason`: why there is no GPU, which is the only good one to be unsupported."""
    bad = []
    for step in steps:
        refused = "unsupported" in (step["status"], *step["records"])
        told = any(part in step["message"] for part in (reason, " skipped", "not on the PATH"))
        if {step["status"], *step["records"]} - set(GOOD) or (refused and not told):
            bad.append(f"{step['name']}: {step['status']}: {step['message']}")
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", type=Path, required=True, help="the machine's python3")
    parser.add_argument("--calls", default="bert-1,bert-2,frames-1,frames-2,frames-3", help="by comma")
    parser.add_argument("--machine", type=Path, help="folder that stands for the machine [a temporary one]")
    parser.add_argument(
        "--stretch", default="10", help="limits are so many times as long: this machine is slower"
    )
    parser.add_argument("--test-scale", default="0.002", help="of the large test [0.002]")
    parser.add_argument("--only", help="steps, in place of the calls' own")
    given = parser.parse_args()
    machine = (given.machine or Path(tempfile.mkdtemp(prefix="buzzer-rehearsal-"))).resolve()
    options = ["--stretch", given.stretch, "--test-scale", given.test_scale, "--minutes", "600"]
    options += ["--only", shlex.quote(given.only)] if given.only else []
    known, bad = calls(), list[str]()
    for name in given.calls.split(","):
        bytes_sent = stage(known[name], machine / "tree")
        code, seconds, out = run(known[name], machine, given.python.absolute(), options)
        print(
            f"call {name}: exit code {code}, {seconds:.0f} s, {bytes_sent / 2**20:.1f} MiB sent", flush=True
        )
        if bytes_sent > MOST_BYTES:
            bad.append(f"{name}: {bytes_sent} bytes travel")
        summary = out / f"{SUMMARY}.json"
        if summary.is_file():
            print((out / f"{SUMMARY}.md").read_text(), flush=True)
            bad += judged(json.loads(summary.read_text())["steps"], cuda_problem())
        elif code:
            bad.append(f"{name}: exit code {code}: see {machine / name}.log")
    print("\n".join(bad) if bad else "every step ended ok, or unsupported")
    print(f"the machine: {machine}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())

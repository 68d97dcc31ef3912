"""`make gpu-suite`: everything that only a GPU can show, in one command, for a machine that may be lent for minutes only.

The steps stand in steps.py, worth most first. Each has its own time limit, none stops the next, and after each the summary and the
pack of results are written anew, so that a suite that is cut off leaves what it has found. Standard library only: it runs before
anything is installed. Without a device that the driver shows, steps end before they begin.
"""

import argparse
import io
import json
import lzma
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from buzzer import caches
from buzzer.engine.device import cuda_problem
from buzzer.suite.gpu.steps import STEPS, TEST_SCALE, Step, chosen

ROOT = Path(__file__).resolve().parents[2]
GRACE_S = 15.0  # a step over its limit may write its record before it is killed
LEAST_S = 10.0  # with less time left no step is begun
LOG_BYTES = 100_000  # of each log's end that the pack keeps
PACK, SUMMARY, SEED_FILE = "gpu-suite.tar.xz", "summary", "seed.tar.xz"
UNABLE = 2  # exit code where there is no GPU, as the command line's own


@dataclass
class Ended:
    """How a step ended: `ok`, `unsupported` (this machine lacks what it needs), `failed`, `timeout` or `skipped`."""

    name: str
    status: str
    seconds: float = 0.0
    cpu_s: float = 0.0  # of the step and of all that it started and waited for
    message: str = ""
    records: dict[str, int] = field(default_factory=dict)  # outcome -> number


# ---- what is installed from .gpukit -------------------------------------------------------------------------------------------


def open_kit(kit: Path, log: Path) -> tuple[list[str], list[Ended]]:
    """Unpack a kit: folders for PYTHONPATH, and how it ended.

    It holds pieces that unpack themselves (`p*/unpack.py`, which tells its folder with --site), wheels (`wheels/*.whl`), and data and
    fits (`seed.tar.xz`). What a broken kit lacks, the steps tell.
    """
    if not kit.is_dir():
        return [], []
    folders, began = list[str](), time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("wb") as file:
            folders += unpacked(sorted(kit.glob("p*/unpack.py")), file)
            folders += installed(sorted(kit.glob("wheels/*.whl")), file)
        sown(kit / SEED_FILE)
        status, message = "ok", " ".join(folders)
    except subprocess.CalledProcessError as error:
        status, message = "failed", f"{Path(error.cmd[1]).name} ended with {error.returncode}: see {log.name}"
    except (OSError, tarfile.TarError, lzma.LZMAError) as error:
        status, message = "failed", f"{kit / SEED_FILE}: {error}"
    return folders, [Ended("kit", status, round(time.monotonic() - began, 1), message=message)]


def unpacked(pieces: Sequence[Path], log: IO[bytes]) -> list[str]:
    """The folder that the pieces have unpacked themselves into; none without pieces."""
    quick = {"GPUKIT_SMOKE": "0"} | os.environ  # the steps try the libraries
    for piece in pieces:
        command = [sys.executable, str(piece), str(piece.parent)]
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True, env=quick)
    if not pieces:
        return []
    ask = [sys.executable, str(pieces[0]), "--site"]
    return [subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()]


def installed(wheels: Sequence[Path], log: IO[bytes]) -> list[str]:
    """A folder of its own that the wheels are installed into; none without wheels."""
    if not wheels:
        return []
    site = tempfile.mkdtemp(prefix="buzzer-gpu-suite-site-")
    options = ["--no-index", "--no-deps", "--no-compile", "--quiet", "--target", site]
    command = [sys.executable, "-m", "pip", "install", *options, *map(str, wheels)]
    subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
    return [site]


def sown(seed: Path) -> None:
    """Put data and fits where `buzzer run` looks for them."""
    if seed.is_file():
        with tarfile.open(seed) as tar:
            tar.extractall(caches.folder(), filter="data")


# ---- running ------------------------------------------------------------------------------------------------------------------


def run_step(
    step: Step, work: Path, limit_s: float, environment: Mapping[str, str], test_scale: float = TEST_SCALE
) -> Ended:
    """One step to its end, or to its limit."""
    if step.through and shutil.which(step.through[0]) is None:
        return Ended(step.name, "unsupported", message=f"{step.through[0]} is not on the PATH")
    name = step.name.replace(" ", "-").replace(",", "")
    log, records = work / "logs" / f"{name}.log", work / "records" / (step.shares or name)
    before = {*records.glob("*.json")}
    log.parent.mkdir(parents=True, exist_ok=True)
    places = {"{records}": str(records), "{work}": str(work), "{test_scale}": f"{test_scale:g}"}
    command = [*step.through, sys.executable, *(filled(part, places) for part in step.command)]
    began, cpu = time.monotonic(), cpu_of_children()
    with log.open("wb") as file:
        file.write(f"$ {' '.join(command)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            cwd=ROOT, env=dict(environment), start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
    seconds, cpu_s = round(time.monotonic() - began, 1), round(cpu_of_children() - cpu, 1)
    written = [json.loads(path.read_text()) for path in sorted({*records.glob("*.json")} - before)]
    outcomes, why = dict(Counter(r["outcome"] for r in written)), first_message(written)
    status, message = judged(code, outcomes, log.read_text(errors="replace").splitlines()[1:])
    message += f": {why}" if why else ""
    return Ended(step.name, status, seconds, cpu_s, message, outcomes)


def filled(part: str, places: Mapping[str, str]) -> str:
    for name, value in places.items():
        part = part.replace(name, value)
    return part


def cpu_of_children() -> float:
    """CPU seconds of all processes that were started and waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a step that still runs to end, as Ctrl-C does, then end it and what it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def first_message(written: Sequence[Mapping[str, Any]]) -> str:
    """Of the first record that did not end well, which engine and what it says; empty where all did."""
    for found in written:
        if found["outcome"] != "ok":
            named = " ".join(found[key] for key in ("job", "engine", "backend") if found.get(key))
            return f"{named}: {found.get('message', '')}"
    return ""


def judged(code: int | None, outcomes: Mapping[str, int], lines: Sequence[str]) -> tuple[str, str]:
    """A step's status and message from its exit code (None: it was over its limit), its records, and its output."""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    told = next((line for line in lines if line.startswith(("error:", "Error:"))), last)
    counted = ", ".join(f"{n} {outcome}" for outcome, n in outcomes.items())
    if code is None:
        return "timeout", counted or last
    if code == 0:
        all_skipped = re.search(r"\d+ skipped", last) and not re.search(r"\d+ passed", last)
        nothing = all_skipped or (outcomes and set(outcomes) == {"unsupported"})
        return ("unsupported" if nothing else "ok"), counted or last
    # The command line ends with 2 for what a machine or an install cannot do; so does a command that is not known.
    unknown = any(line.startswith("Usage:") for line in lines)
    return ("unsupported" if code == 2 and not unknown else "failed"), counted or told


def run_steps(
    steps: Iterable[Step],
    work: Path,
    out: Path,
    seconds: float,
    environment: Mapping[str, str],
    before: Sequence[Ended] = (),
    no_gpu: str = "",
    stretch: float = 1.0,
    test_scale: float = TEST_SCALE,
) -> list[Ended]:
    """All steps, as far as the time goes; summary and pack are whole after each, and begin with what ended before. no_gpu: why steps
    that need a GPU cannot have one. stretch: how much longer than its limit a step may take."""
    deadline, ended = time.monotonic() + seconds, list(before)
    for step in steps:
        left = deadline - time.monotonic() - GRACE_S
        if no_gpu and step.gpu:
            ended.append(Ended(step.name, "unsupported", message=no_gpu))
            print(line(ended[-1]), flush=True)
        elif left < LEAST_S:
            ended.append(Ended(step.name, "skipped", message="no time left"))
        else:
            print(f"{step.name} ...", flush=True)
            ended.append(run_step(step, work, min(step.limit_s * stretch, left), environment, test_scale))
            print(line(ended[-1]), flush=True)
        write(out, work, ended)
    return ended


def listed(steps: Iterable[Step]) -> list[str]:
    """A table of the steps: limit, seconds expected, when it ends by them, CPU seconds measured without a GPU, and the command."""
    lines, minutes = [f"{'step':30} group   limit expected  ends at  CPU s"], 0.0
    for step in steps:
        minutes += step.expected_s / 60
        measured = f"{step.cpu_s:6.0f}" if step.cpu_s else "     -"
        seconds = f"{step.limit_s:5.0f} {step.expected_s:8.0f} {minutes:4.1f} min {measured}"
        lines.append(f"{step.name:30} {step.group:6} {seconds}  {' '.join((*step.through, *step.command))}")
    return lines


def line(ended: Ended) -> str:
    return f"{ended.name}: {ended.status}, {ended.seconds:.1f} s  {ended.message}"


# ---- results ------------------------------------------------------------------------------------------------------------------


def write(out: Path, work: Path, ended: Sequence[Ended]) -> None:
    """The summary for programs and for people, and the pack of both, all records and the logs' ends."""
    facts = {"python": sys.version.split()[0], "steps": [asdict(step) for step in ended]}
    table = ["| step | status | s | CPU s | what |", "| --- | --- | --- | --- | --- |"]
    table += [
        f"| {e.name} | {e.status} | {e.seconds:.1f} | {e.cpu_s:.1f} | {e.message.replace('|', '/')} |"
        for e in ended
    ]
    texts = {f"{SUMMARY}.json": json.dumps(facts, indent=1) + "\n", f"{SUMMARY}.md": "\n".join(table) + "\n"}
    for name, text in texts.items():
        replace(out / name, text.encode())
    replace(out / PACK, packed(work, texts))


def packed(work: Path, texts: Mapping[str, str]) -> bytes:
    """A .tar.xz of the texts, every record, and the last LOG_BYTES of every log."""
    members = {name: text.encode() for name, text in texts.items()}
    for path in sorted([*work.glob("records/*/*.json"), *work.glob("logs/*.log")]):
        content = path.read_bytes()
        members[str(path.relative_to(work))] = content[-LOG_BYTES:] if path.suffix == ".log" else content
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_bytes(content)
    aside.replace(path)


def environment_of(folders: Sequence[str]) -> dict[str, str]:
    """This environment, with the kit's folders before what the machine has."""
    known = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(part for part in (str(ROOT), *folders, known) if part)
    return os.environ | caches.environment() | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make gpu-suite", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=30.0, help="for all steps together [30]")
    parser.add_argument(
        "--only", default="", help="groups, and parts of steps' names, by comma, in this order"
    )
    parser.add_argument(
        "--kit", type=Path, default=ROOT / ".gpukit", help="what a machine without network lacks"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "local" / "gpu-suite")
    parser.add_argument("--anyway", action="store_true", help="also run what needs a GPU where there is none")
    parser.add_argument("--stretch", type=float, default=1.0, help="limits are so many times as long [1]")
    parser.add_argument(
        "--test-scale", type=float, default=TEST_SCALE, help=f"of the large test [{TEST_SCALE:g}]"
    )
    parser.add_argument("--list", action="store_true", help="show the steps, run nothing")
    return parser


def main() -> int:
    given = arguments().parse_args()
    steps = chosen(given.only)
    if given.list or not steps:
        print("\n".join(listed(steps or STEPS)))
        return 0 if given.list else 2
    began = time.monotonic()
    given.out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="buzzer-gpu-suite-"))
    folders, before = open_kit(given.kit, work / "logs" / "kit.log")
    left = 60 * given.minutes - (time.monotonic() - began)
    no_gpu = "" if given.anyway else cuda_problem()
    environment, out = environment_of(folders), given.out.resolve()
    how = {"stretch": given.stretch, "test_scale": given.test_scale}
    ended = run_steps(steps, work, out, left, environment, before, no_gpu, **how)
    print(
        f"\n{(given.out / f'{SUMMARY}.md').read_text()}\nresults: {given.out / PACK}; records: {work / 'records'}"
    )
    if any(step.status in ("failed", "timeout") for step in ended):
        return 1
    return UNABLE if no_gpu else 0


if __name__ == "__main__":
    sys.exit(main())

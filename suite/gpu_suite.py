"""`make gpu-suite`: everything that only a GPU can show, in one command, for a machine that may be lent for minutes only.

Steps are plain records, worth most first and largest last. Each has its own time limit, none stops the next, and after each the summary
and the pack of results are written anew, so that a suite that is cut off after 3, 6 or 9 minutes leaves what it has found.
Standard library only: it runs before anything is installed. Without a device that the driver shows, steps end before they begin.
"""

import argparse
import io
import json
import os
import re
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

from buzzer.engine.device import cuda_problem

ROOT = Path(__file__).resolve().parent.parent
GRACE_S = 15.0  # a step over its limit may write its record before it is killed
LEAST_S = 10.0  # with less time left no step is begun
LOG_BYTES = 100_000  # of each log's end that the pack keeps
PACK, SUMMARY = "gpu-suite.tar.xz", "summary"
UNABLE = 2  # exit code where there is no GPU, as the command line's own


@dataclass(frozen=True)
class Step:
    """One command, arguments of this Python; `{records}` stands for the folder that takes its records."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    gpu: bool = True  # whether it shows nothing without one


@dataclass
class Ended:
    """How a step ended: `ok`, `unsupported` (this machine lacks what it needs), `failed`, `timeout` or `skipped`."""

    name: str
    status: str
    seconds: float = 0.0
    message: str = ""
    records: dict[str, int] = field(default_factory=dict)  # outcome -> number


ENGINES = "pandas,polars,cudf,polars-gpu"
GPU_TESTS = "(cudf or polars-gpu or cuda or nvforest) and not without_a_gpu"
LESS_FIT = (
    "--set",
    "sample_rows=200000",
    "--set",
    "network_rows=100000",
)  # the large sizes are for the predict job


ON_CLUSTER = ("--gpus", "1", "--device", "cuda", "--seed", "1")
SHOPS = ("sigir-ecom-task2", "sigir-ecom-task1", "online-shoppers", "complete-journey")


def tests(name: str, limit_s: float, *folders: str) -> Step:
    """Those tests of some folders that run on a GPU, by their parameters' names."""
    chosen = ("-k", GPU_TESTS, "-m", "not gpu_plan and not slow")
    return Step(name, ("-m", "pytest", "-q", "--maxfail=20", *chosen, *folders), limit_s)


def run(name: str, limit_s: float, task: str, *options: str, budget: str = "unlimited") -> Step:
    told = ("--on-unmet-budget", "warn", "--out", "{records}")
    return Step(name, ("-m", "buzzer", "run", task, "--budget", budget, *told, *options), limit_s)


def recsys(
    suffix: str,
    limit_s: float,
    scale: str,
    *options: str,
    engines: str = ENGINES,
    backends: str = "torch_eager",
    **more: str,
) -> Step:
    chosen = ("--engine", engines, "--backend", backends, "--scale", scale)
    return run(f"recsys2021 {suffix}", limit_s, "recsys2021", *chosen, *options, **more)


def bench(name: str, limit_s: float, model: str, *options: str) -> Step:
    command = ("-m", "buzzer", "bench", model, "--device", "cuda", "--out", "{records}")
    return Step(name, (*command, *options), limit_s)


# The first 3 minutes show whether it works at all, 6 every task and backend, 9 and more the sizes that are worth a GPU.
STEPS: tuple[Step, ...] = (
    Step("env", ("-m", "buzzer", "env"), 60, gpu=False),
    tests("tests of operators", 90, "tests/engine/frames"),
    recsys("small", 90, "0.0005"),
    Step("kernel probe", ("-m", "buzzer.engine.kernels", "probe"), 45),
    bench("bert-large", 120, "bert-large"),
    bench("trees", 60, "gbdt", "--batch", "1,1000,100000"),
    run("booking", 90, "booking", "--engine", ENGINES, "--backend", "torch_eager"),
    recsys("nvforest", 60, "0.0005", engines="pandas,cudf,polars-gpu", backends="torch_eager,nvforest"),
    run("bert-intent", 60, "bert-intent", "--device", "cuda", "--backend", "all"),
    tests("tests of models", 120, "tests/engine", "tests/models", "--ignore=tests/engine/frames"),
    recsys("cluster of one", 90, "0.0005", "--gpus", "1", engines="pandas,polars-gpu"),
    # Another seed, or the fit of the steps before would be taken.
    recsys("fit on a cluster", 120, "0.0005", *ON_CLUSTER, engines="polars-gpu"),
    *(run(name, 90, name, "--engine", ENGINES, "--backend", "torch_eager,nvforest") for name in SHOPS),
    Step("kernel tune", ("-m", "buzzer.engine.kernels", "tune"), 120),
    recsys("large", 240, "0.005", *LESS_FIT),
    recsys("large, one core", 300, "0.005", *LESS_FIT, engines="pandas,polars", budget="1c64g1h"),
    recsys("largest", 600, "0.02", *LESS_FIT),
)


# ---- what is installed from .gpukit -------------------------------------------------------------------------------------------


def open_kit(kit: Path, log: Path) -> tuple[list[str], list[Ended]]:
    """Unpack a kit: folders for PYTHONPATH, and how it ended. It holds pieces that unpack themselves (`p*/unpack.py`, which tells its
    folder with --site), and wheels (`wheels/*.whl`). What a broken kit lacks, the steps tell."""
    if not kit.is_dir():
        return [], []
    folders, began = list[str](), time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("wb") as file:
            folders += unpacked(sorted(kit.glob("p*/unpack.py")), file)
            folders += installed(sorted(kit.glob("wheels/*.whl")), file)
        status, message = "ok", " ".join(folders)
    except subprocess.CalledProcessError as error:
        status, message = "failed", f"{Path(error.cmd[1]).name} ended with {error.returncode}: see {log.name}"
    return folders, [Ended("kit", status, round(time.monotonic() - began, 1), message)]


def unpacked(pieces: Sequence[Path], log: IO[bytes]) -> list[str]:
    """The folder that the pieces have unpacked themselves into; none without pieces."""
    for piece in pieces:
        command = [sys.executable, str(piece), str(piece.parent)]
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
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


# ---- running ------------------------------------------------------------------------------------------------------------------


def run_step(step: Step, work: Path, limit_s: float, environment: Mapping[str, str]) -> Ended:
    """One step to its end, or to its limit."""
    name = step.name.replace(" ", "-").replace(",", "")
    log, records = work / "logs" / f"{name}.log", work / "records" / name
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *(part.replace("{records}", str(records)) for part in step.command)]
    began = time.monotonic()
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
    seconds = round(time.monotonic() - began, 1)
    written = [json.loads(path.read_text()) for path in sorted(records.glob("*.json"))]
    outcomes, why = dict(Counter(r["outcome"] for r in written)), first_message(written)
    status, message = judged(code, outcomes, log.read_text(errors="replace").splitlines()[1:])
    message += f": {why}" if why else ""
    return Ended(step.name, status, seconds, message, outcomes)


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
) -> list[Ended]:
    """All steps, as far as the time goes; summary and pack are whole after each, and begin with what ended before. no_gpu: why steps
    that need a GPU cannot have one."""
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
            ended.append(run_step(step, work, min(step.limit_s, left), environment))
            print(line(ended[-1]), flush=True)
        write(out, work, ended)
    return ended


def line(ended: Ended) -> str:
    return f"{ended.name}: {ended.status}, {ended.seconds:.1f} s  {ended.message}"


# ---- results ------------------------------------------------------------------------------------------------------------------


def write(out: Path, work: Path, ended: Sequence[Ended]) -> None:
    """The summary for programs and for people, and the pack of both, all records and the logs' ends."""
    facts = {"python": sys.version.split()[0], "steps": [asdict(step) for step in ended]}
    table = ["| step | status | s | what |", "| --- | --- | --- | --- |"]
    table += [
        f"| {step.name} | {step.status} | {step.seconds:.1f} | {step.message.replace('|', '/')} |"
        for step in ended
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
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make gpu-suite", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=30.0, help="for all steps together [30]")
    parser.add_argument("--only", default="", help="steps whose name holds this, by comma")
    parser.add_argument(
        "--kit", type=Path, default=ROOT / ".gpukit", help="what a machine without network lacks"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "local" / "gpu-suite")
    parser.add_argument("--anyway", action="store_true", help="also run what needs a GPU where there is none")
    parser.add_argument("--list", action="store_true", help="show the steps, run nothing")
    return parser


def main() -> int:
    given = arguments().parse_args()
    wanted = [part.strip() for part in given.only.split(",")]
    steps = [step for step in STEPS if any(part in step.name for part in wanted)]
    if given.list or not steps:
        for step in STEPS:
            print(f"{step.name:26} {step.limit_s:4.0f} s  {' '.join(step.command)}")
        return 0 if given.list else 2
    began = time.monotonic()
    given.out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="buzzer-gpu-suite-"))
    folders, before = open_kit(given.kit, work / "logs" / "kit.log")
    left = 60 * given.minutes - (time.monotonic() - began)
    no_gpu = "" if given.anyway else cuda_problem()
    ended = run_steps(steps, work, given.out.resolve(), left, environment_of(folders), before, no_gpu)
    print(
        f"\n{(given.out / f'{SUMMARY}.md').read_text()}\nresults: {given.out / PACK}; records: {work / 'records'}"
    )
    if any(step.status in ("failed", "timeout") for step in ended):
        return 1
    return UNABLE if no_gpu else 0


if __name__ == "__main__":
    sys.exit(main())

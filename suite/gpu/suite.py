"""`make gpu-suite`: everything that needs a GPU, in one command, for a machine that may be available only for minutes.

steps.py lists the steps, the most valuable first. Each has its own time limit, and none stops the next. After each step the summary
and the pack of results are written again, so that a suite that is cut off keeps what it has measured. It runs before anything is
installed, so it imports the standard library only. Without a device that the driver shows, steps that need one are not started.
"""

import argparse
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from buzzer import caches
from buzzer.engine.device import cuda_problem
from buzzer.suite.gpu import install, results
from buzzer.suite.gpu.install import ROOT
from buzzer.suite.gpu.results import CACHES, PACK, SUMMARY, StepResult
from buzzer.suite.gpu.steps import STEPS, TEST_SCALE, Step, chosen

GRACE_S = 15.0  # a step over its limit has this time to write its record before it is killed
LEAST_S = 10.0  # no step is started with less time left
NO_GPU = 2  # exit code without a GPU, the same as the command line's


def run_step(
    step: Step, work: Path, limit_s: float, environment: Mapping[str, str], test_scale: float = TEST_SCALE
) -> StepResult:
    """Run one step to its end, or to its limit in seconds."""
    if step.through and shutil.which(step.through[0]) is None:
        return StepResult(step.name, "unsupported", message=f"{step.through[0]} is not on the PATH")
    name = step.name.replace(" ", "-").replace(",", "")
    log, folder = work / "logs" / f"{name}.log", work / "records" / (step.shares or name)
    before = results.record_files(folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    values = {"{records}": str(folder), "{work}": str(work), "{test_scale}": f"{test_scale:g}"}
    command = [*step.through, sys.executable, *(fill(part, values) for part in step.command)]
    began, cpu = time.monotonic(), children_cpu_s()
    code = run_command(command, log, limit_s, environment)
    seconds, cpu_s = round(time.monotonic() - began, 1), round(children_cpu_s() - cpu, 1)
    written = results.read_records(results.record_files(folder) - before)
    output = log.read_text(errors="replace").splitlines()[1:]
    status, message = status_of(code, written.outcomes, output)
    message += f": {written.message}" if written.message else ""
    return StepResult(step.name, status, seconds, cpu_s, message, written.outcomes)


def run_command(
    command: Sequence[str], log: Path, limit_s: float, environment: Mapping[str, str]
) -> int | None:
    """Run a command, with its output in the log. Returns its exit code, or None if it was over its limit."""
    with log.open("wb") as file:
        file.write(f"$ {' '.join(command)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            cwd=ROOT, env=dict(environment), start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end(process)


def fill(part: str, values: Mapping[str, str]) -> str:
    """A part of a command with its placeholders replaced."""
    for placeholder, value in values.items():
        part = part.replace(placeholder, value)
    return part


def children_cpu_s() -> float:
    """CPU seconds of all processes that this process started and waited for, and of their children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a running process, as Ctrl-C does. After GRACE_S, kill it and all processes that it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def status_of(code: int | None, outcomes: Mapping[str, int], lines: Sequence[str]) -> tuple[str, str]:
    """A step's status and message from its exit code (None: over its limit), the outcomes of its records, and its output."""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    error = next((line for line in lines if line.startswith(("error:", "Error:"))), last)
    counts = ", ".join(f"{n} {outcome}" for outcome, n in outcomes.items())
    if code is None:
        return "timeout", counts or last
    if code == 0:
        all_skipped = re.search(r"\d+ skipped", last) and not re.search(r"\d+ passed", last)
        nothing = all_skipped or (outcomes and set(outcomes) == {"unsupported"})
        return ("unsupported" if nothing else "ok"), counts or last
    # The command line exits with 2 if the machine or the installation lacks something, and also for a wrong command, which prints its usage.
    wrong_command = any(line.startswith("Usage:") for line in lines)
    return ("unsupported" if code == 2 and not wrong_command else "failed"), counts or error


def run_steps(
    steps: Iterable[Step],
    work: Path,
    out: Path,
    seconds: float,
    environment: Mapping[str, str],
    before: Sequence[StepResult] = (),
    no_gpu: str = "",
    stretch: float = 1.0,
    test_scale: float = TEST_SCALE,
) -> list[StepResult]:
    """Run the steps that fit into `seconds`. After each, the summary and the pack are written to `out`.

    `before`: results that the summary begins with. `no_gpu`: why steps that need a GPU cannot run. `stretch`: factor of all limits.
    """
    deadline, ended = time.monotonic() + seconds, list(before)
    for step in steps:
        left = deadline - time.monotonic() - GRACE_S
        if no_gpu and step.gpu:
            ended.append(StepResult(step.name, "unsupported", message=no_gpu))
            print(ended[-1].line(), flush=True)
        elif left < LEAST_S:
            ended.append(StepResult(step.name, "skipped", message="no time left"))
        else:
            print(f"{step.name} ...", flush=True)
            ended.append(run_step(step, work, min(step.limit_s * stretch, left), environment, test_scale))
            print(ended[-1].line(), flush=True)
        results.write(out, work, ended)
    return ended


def table(steps: Iterable[Step]) -> list[str]:
    """The steps, one per line: limit, expected seconds, expected end, CPU seconds measured without a GPU, and command."""
    lines, minutes = [f"{'step':30} group   limit expected  ends at  CPU s"], 0.0
    for step in steps:
        minutes += step.expected_s / 60
        measured = f"{step.cpu_s:6.0f}" if step.cpu_s else "     -"
        seconds = f"{step.limit_s:5.0f} {step.expected_s:8.0f} {minutes:4.1f} min {measured}"
        lines.append(f"{step.name:30} {step.group:6} {seconds}  {' '.join((*step.through, *step.command))}")
    return lines


def arguments() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(prog="make gpu-suite", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=30.0, help="for all steps together [30]")
    parser.add_argument(
        "--only", default="", help="groups, and parts of steps' names, separated by commas, in this order"
    )
    parser.add_argument(
        "--kit", type=Path, default=ROOT / ".gpukit", help="what a machine without network lacks"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "local" / "gpu-suite")
    parser.add_argument(
        "--anyway", action="store_true", help="without a GPU, also run the steps that need one"
    )
    parser.add_argument("--stretch", type=float, default=1.0, help="factor of all limits [1]")
    parser.add_argument(
        "--test-scale", type=float, default=TEST_SCALE, help=f"scale of the large test [{TEST_SCALE:g}]"
    )
    parser.add_argument("--list", action="store_true", help="print the steps and run nothing")
    return parser


def main() -> int:
    """Run the steps that the command line names. Returns 1 if a step failed, 2 without a GPU, else 0."""
    options = arguments().parse_args()
    steps = chosen(options.only)
    if options.list or not steps:
        print("\n".join(table(steps or STEPS)))
        return 0 if options.list else 2
    began = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="buzzer-gpu-suite-"))
    folders, before = install.install(options.kit, work / "logs" / "kit.log")
    left = 60 * options.minutes - (time.monotonic() - began)
    no_gpu = "" if options.anyway else cuda_problem()
    ended = run_steps(
        steps,
        work,
        options.out.resolve(),
        left,
        install.environment(folders),
        before,
        no_gpu,
        options.stretch,
        options.test_scale,
    )
    if options.kit.is_dir():  # the machine may be gone before the next call
        results.pack_caches(options.out / CACHES, caches.folder())
    summary = (options.out / f"{SUMMARY}.md").read_text()
    print(f"\n{summary}\nresults: {options.out / PACK}; records: {work / 'records'}")
    if any(step.status in ("failed", "timeout") for step in ended):
        return 1
    return NO_GPU if no_gpu else 0


if __name__ == "__main__":
    sys.exit(main())

"""The soak test: under random faults, every run has one valid record, and nothing is left behind.

It does 20 runs by default. BUZZER_SOAK=200 (`make soak`) does 200 and prints a table of the faults.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from buzzer.errors import DataError
from buzzer.suite.records import integrity, record
from buzzer.suite.records.schema import Record
from buzzer.suite.run import runner

HERE = Path(__file__).resolve().parents[1]
RUNS = int(os.environ.get("BUZZER_SOAK", "20"))
EXPECTED = {  # fault -> outcome, and part of the message
    "work": ("ok", ""),
    "eat": ("host-oom", "over the memory limit"),
    "sleep": ("timeout", "the buzzer went"),
    "spawn": ("timeout", "the buzzer went"),
    "crash": ("error", "something broke"),
    "segfault": ("error", "signal 11"),
    "kill": ("error", "signal 9"),
    "exit_early": ("error", "exit code 7"),
    "no_memory": ("device-oom", "out_of_memory"),
    "bad_data": ("error", "not a date"),
    "no_gpu": ("unsupported", "no CUDA device"),
    "full_disk": ("error", "No space left"),
}
EVENTS = ("kill -9", "Ctrl-C", "corrupt folder", "full disk")


@dataclass
class Soak:
    """Runs one harness after the other with the same results folder."""

    home: Path
    out: Path
    lost: set[str] = field(default_factory=set)  # runs that were in progress when the harness was killed
    interrupted: set[str] = field(default_factory=set)
    events: Counter[str] = field(default_factory=Counter)
    corrupt: set[Path] = field(default_factory=set)

    def start(self) -> subprocess.Popen[str]:
        env = os.environ | {
            "BUZZER_CACHE": str(self.cache),
            "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}",
        }
        command = [sys.executable, str(HERE / "soak_harness.py"), str(self.out), str(max(RUNS // 2, 1))]
        with (self.home / "stderr").open("a") as errors:
            return subprocess.Popen(command, env=env, stderr=errors, text=True)

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    def log(self) -> list[dict[str, object]]:
        path = self.cache / "soak.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def disturb(self, harness: subprocess.Popen[str], event: str) -> None:
        """Let one event happen to a running harness, and wait until it has ended."""
        self.events[event] += 1
        if event == "kill -9":
            harness.kill()
            harness.wait()
            self.lost |= self.without_record()
        elif event == "Ctrl-C":
            harness.send_signal(signal.SIGINT)
            harness.wait(timeout=30)
            self.interrupted |= {r.run_id[:8] for r in self.good() if runner.interrupted(r)}
        elif event == "corrupt folder":
            harness.wait()
            self.spoil()
        else:
            with full(self.out):
                assert harness.wait(timeout=60) in (0, 2)
            self.lost |= self.without_record()

    def without_record(self) -> set[str]:
        return {str(e["run"]) for e in self.log()} - {r.run_id[:8] for r in self.good()}

    def good(self) -> list[Record]:
        return [*integrity.examine(record.paths([self.out])).good.values()]

    def spoil(self) -> None:
        """Damage the results folder, as a broken disk or a careless user might."""
        folder = self.out / f"broken-{len(self.corrupt)}.json"
        folder.mkdir()
        cut = self.out / f"cut-{len(self.corrupt)}.json"
        cut.write_text('{"schema_version": 1, "run_id"')
        noise = self.out / f"noise-{len(self.corrupt)}.json"
        noise.write_bytes(bytes(range(256)))
        self.corrupt |= {folder, cut, noise}


class full:
    """Fills the file system of `out`, a small tmpfs (see `disk`), to the last byte."""

    def __init__(self, out: Path) -> None:
        self.ballast = out / "ballast"

    def __enter__(self) -> None:
        with suppress(OSError), self.ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def __exit__(self, *_: object) -> None:
        self.ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, bool]]:
    """A results folder, and whether it is on a separate tmpfs, which not every process may mount."""
    out = tmp_path / "out"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(out)]
    mounted = (
        sys.platform == "linux" and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    )
    yield out, mounted
    if mounted:
        subprocess.run(["umount", "-l", str(out)], check=True)


@pytest.mark.soak
@pytest.mark.slow
def test_every_run_has_one_record_and_nothing_is_left_behind(
    tmp_path: Path, disk: tuple[Path, bool], capsys: pytest.CaptureFixture[str]
) -> None:
    out, mounted = disk
    soak, draw = Soak(tmp_path, out), random.Random(RUNS)
    events = [e for e in EVENTS if mounted or e != "full disk"]
    while len(soak.log()) < RUNS:
        harness, seen = soak.start(), len(soak.log())
        wanted = seen + draw.randint(1, max(RUNS // 12, 2))
        while harness.poll() is None and len(soak.log()) < wanted:
            time.sleep(0.02)
        time.sleep(draw.random() * 0.2)
        event = events[sum(soak.events.values()) % len(events)]
        if event == "corrupt folder":
            harness.send_signal(signal.SIGINT)
        soak.disturb(harness, event)
        soak.interrupted |= {r.run_id[:8] for r in soak.good() if runner.interrupted(r)}

    struck = len(soak.log())
    (soak.cache / "calm").touch()
    assert soak.start().wait() == 0  # --resume finishes the rest
    check_records(soak, struck)
    check_nothing_left(soak)
    with capsys.disabled():
        if "BUZZER_SOAK" in os.environ:
            print(table(soak, mounted))


def check_records(soak: Soak, struck: int) -> None:
    log = soak.log()
    by_run: dict[str, list[Record]] = {str(e["run"]): [] for e in log}
    timed = [r for r in soak.good() if r.job == "predict"]
    for r in timed:
        by_run.setdefault(r.run_id[:8], []).append(r)
    for entry in log:
        run, fault = str(entry["run"]), str(entry["fault"])
        assert len(by_run[run]) == (0 if run in soak.lost else 1), (run, fault)
        if by_run[run] and run not in soak.interrupted:
            (r,) = by_run[run]
            outcome, word = EXPECTED[fault]
            late = fault == "eat" and r.outcome == "timeout"  # a busy machine is slow to use 300 MB
            assert late or (r.outcome, word in r.message) == (outcome, True), (fault, r.outcome, r.message)
    assert len(soak.lost) <= soak.events["kill -9"] + soak.events["full disk"]
    assert {e["fault"] for e in log[struck:]} <= {"work"}
    planned = Counter(r.repeat for r in timed if r.outcome == "ok")
    assert planned == dict.fromkeys(range(max(RUNS // 2, 1)), 1)
    broken = set()
    for path in record.paths([soak.out]):
        try:
            record.read(path)
        except DataError:
            broken.add(path)
    assert broken == {
        path for path in soak.corrupt if path.is_file()
    }  # a folder with such a name is not read
    assert not list(soak.out.rglob(".*.tmp"))


def check_nothing_left(soak: Soak) -> None:
    """No process of a run and no control group is left. After `kill -9` the reaper may take a moment."""
    groups = {group for entry in soak.log() for group in run_groups(entry)}
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and (alive(soak.home) or any(g.exists() for g in groups)):
        time.sleep(0.1)
    assert alive(soak.home) == []
    assert [g for g in groups if g.exists()] == []


def run_groups(entry: dict[str, object]) -> Iterator[Path]:
    for line in entry["groups"]:  # type: ignore[attr-defined]
        _, controllers, inside = line.split(":", 2)
        if "benchmark_" in inside:
            yield Path("/sys/fs/cgroup") / controllers.removeprefix("name=") / inside.lstrip("/")


def alive(home: Path) -> list[int]:
    """Processes whose environment names this test's cache: the harnesses, their runs, and processes that the runs started."""
    pids = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            mine = process.environ().get("BUZZER_CACHE") == str(home / "cache")
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                pids.append(process.pid)
    return pids


def table(soak: Soak, mounted: bool) -> str:
    """A table of the faults: how often each occurred, and which outcomes it had."""
    counts_of: dict[str, Counter[str]] = {}
    outcomes = {r.run_id[:8]: r.outcome for r in soak.good()}
    for entry in soak.log():
        run = str(entry["run"])
        outcome = "no record (harness killed)" if run in soak.lost else outcomes[run]
        outcome = "error, interrupted" if run in soak.interrupted else outcome
        counts_of.setdefault(str(entry["fault"]), Counter())[outcome] += 1
    lines = [f"{'fault':14} {'runs':>5}  outcomes"]
    for fault, counts in sorted(counts_of.items()):
        text = ", ".join(f"{n} {what}" for what, n in counts.most_common())
        lines.append(f"{fault:14} {counts.total():5}  {text}")
    lines += [f"{event:14} {n:5}  events of the harness itself" for event, n in soak.events.items()]
    lines += [] if mounted else ["full disk: not tried, no right to mount a tmpfs"]
    return "\n" + "\n".join(lines)


def test_the_reaper_kills_what_a_killed_harness_leaves(tmp_path: Path) -> None:
    """It finds a grandchild in a separate session by the token in its environment."""
    code = (
        "import os, subprocess, sys\nfrom buzzer.suite.run import reaper\n"
        "env = os.environ | {reaper.VARIABLE: reaper.token()}\n"
        "print(subprocess.Popen(['sleep', '300'], env=env, start_new_session=True).pid, flush=True)\n"
        "sys.stdin.read()"
    )
    harness = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=HERE.parents[1],
        text=True,
    )
    assert harness.stdout is not None
    pid = int(harness.stdout.readline())
    assert psutil.pid_exists(pid)
    harness.kill()
    harness.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and psutil.pid_exists(pid):
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

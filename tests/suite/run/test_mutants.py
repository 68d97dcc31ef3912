"""Mutation tests of the harness: each mutant breaks one rule, and the test that it names must then fail.

By default the tests check only that every mutant matches the source and names an existing test. With `BUZZER_MUTANTS=1` each mutant is applied to a
copy of the checkout: its test must pass without the mutant and fail with it.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COPIED = ("buzzer", "configs", "datasets", "engine", "models", "suite", "tests", "docs", "pyproject.toml")
THOROUGH = "BUZZER_MUTANTS" in os.environ


@dataclass(frozen=True)
class Mutant:
    """Replaces `old` with `new` in `file`. Then `test` must fail: a file under tests/, a function, and parameters if it has any."""

    file: str
    old: str
    new: str
    test: str


CHEATS, SCORING, CHILD = (
    "suite/run/test_believed.py",
    "suite/run/test_scoring.py",
    "suite/run/test_worker.py",
)
COMPARABLE, SITTINGS = "suite/records/test_comparable.py", "suite/run/test_sittings.py"
CLOCK, BENCH, NEIGHBOURS = (
    "suite/run/test_clock.py",
    "suite/bench/test_protocol.py",
    "suite/run/test_neighbours.py",
)
MUTANTS = {
    "cores not limited by the kernel": Mutant(
        "suite/run/limits.py",
        "cores=usable_cores(self._budget),",
        "cores=None,",
        f"{CHEATS}::test_cores_are_a_limit[cgroups]",
    ),
    "cores not limited when polling": Mutant(
        "suite/run/limits.py",
        "preexec_fn=pin(usable_cores(self._budget)),",
        "preexec_fn=None,",
        f"{CHEATS}::test_cores_are_a_limit[polled]",
    ),
    "a process may change its mask of cores": Mutant(
        "suite/run/limits.py",
        "return Reason.CORES",
        "return Reason.SELF",
        f"{CHEATS}::test_cores_are_a_limit[polled]",
    ),
    "memory not limited by the kernel": Mutant(
        "suite/run/limits.py",
        "memlimit=self._budget.memory_bytes,",
        "memlimit=None,",
        "suite/run/test_runner.py::test_every_end_becomes_a_valid_record[cgroups-eat-1c200m30s-host-oom-over the memory limit in phase predict]",
    ),
    "memory of children not counted": Mutant(
        "suite/run/limits.py",
        "process.ppid() in self._members or self._has_token(process)",
        "False",
        f"{CHEATS}::test_a_cheat_is_detected[polled-hungry-forks]",
    ),
    "daemons are not killed": Mutant(
        "suite/run/limits.py",
        "        family.kill()\n",
        "",
        f"{CHEATS}::test_a_daemon_is_counted_and_ended[polled]",
    ),
    "CPU seconds of the first process only": Mutant(
        "suite/run/limits.py",
        "return max(sum(self._cpu.values()), first_s + sum(self._cpu[p] for p in self._orphans))",
        "return first_s",
        f"{CHEATS}::test_a_daemon_is_counted_and_ended[polled]",
    ),
    "no device sync at the clock": Mutant(
        "suite/run/worker.py",
        "    return torch.cuda.synchronize\n",
        "    return lambda: None\n",
        f"{CHILD}::test_the_clock_of_a_gpu_run_waits_for_the_device",
    ),
    "the clock does not wait at a phase": Mutant(
        "suite/run/clock.py",
        "        self._synchronize()\n        t = self._now()\n        if name",
        "        t = self._now()\n        if name",
        f"{CLOCK}::test_the_device_is_waited_for_before_every_reading",
    ),
    "the clock does not wait at the end": Mutant(
        "suite/run/clock.py",
        "        self._synchronize()\n        t = self._now()\n        self._close(t)\n        self.overhead_s",
        "        t = self._now()\n        self._close(t)\n        self.overhead_s",
        f"{CLOCK}::test_the_device_is_waited_for_before_every_reading",
    ),
    "scoring inside the wall time": Mutant(
        "suite/run/clock.py",
        "self._begin if self._name == SCORE else t",
        "t",
        f"{SCORING}::test_scoring_is_recorded_and_not_compared[polled]",
    ),
    "work after score": Mutant(
        "suite/run/clock.py",
        "elif self._name == SCORE:",
        "elif False:",
        f"{SCORING}::test_any_report_of_a_run_becomes_one_record[score-again-error-phase predict comes after score]",
    ),
    "start is not counted": Mutant(
        "suite/run/clock.py",
        "self._start = now() - age",
        "self._start = now()",
        f"{CLOCK}::test_phases_and_laps_add_up_to_the_wall_time",
    ),
    "the run's clock is not checked": Mutant(
        "suite/run/progress.py",
        "wall_s + slack < last - self.born_s",
        "False",
        f"{CHEATS}::test_a_cheat_is_detected[polled-slow-clock]",
    ),
    "lines after the end are accepted": Mutant(
        "suite/run/progress.py",
        '        if self.end is not None:\n            raise ValueError("a line after the end")\n',
        "",
        f"{CHEATS}::test_contradictory_lines_are_rejected",
    ),
    "gaps between phases": Mutant(
        "suite/run/progress.py",
        "return self.closed_s is not None and abs(self.closed_s - at_s) < SAME_S",
        "return self.closed_s is not None",
        f"{CHEATS}::test_contradictory_lines_are_rejected",
    ),
    "files are judged by a time that programs can set": Mutant(
        "suite/run/progress.py",
        "path.stat().st_ctime_ns",
        "path.stat().st_mtime_ns",
        f"{CHEATS}::test_a_cheat_is_detected[polled-late-file]",
    ),
    "a budget is exceeded a little": Mutant(
        "suite/run/record_builder.py",
        "wall_s <= budget.time_s",
        "wall_s <= budget.time_s + 1",
        f"{SCORING}::test_the_limit_holds_for_what_is_compared",
    ),
    "a score that is not finite": Mutant(
        "suite/run/record_builder.py",
        "if isinstance(value, float) and not math.isfinite(value)",
        "if False",
        f"{SCORING}::test_any_report_of_a_run_becomes_one_record[score-nan-wrong-no finite score: accuracy is nan]",
    ),
    "modules of the working folder": Mutant(
        "suite/run/supervise.py",
        ', "PYTHONSAFEPATH": "1"',
        "",
        f"{CHEATS}::test_a_module_in_the_working_folder_is_not_run[polled]",
    ),
    "an empty entry of the path": Mutant(
        "suite/run/supervise.py",
        "*filter(None, inherited)",
        "*inherited",
        f"{CHEATS}::test_a_module_in_the_working_folder_is_not_run[polled]",
    ),
    "inputs may change": Mutant(
        "suite/run/inputs.py",
        "stat.st_ctime_ns)",
        "0)",
        f"{NEIGHBOURS}::test_changed_inputs_are_detected[touch back]",
    ),
    "inputs are not read": Mutant(
        "suite/run/inputs.py",
        "for path in files:",
        "for path in ():",
        f"{NEIGHBOURS}::test_inputs_are_read_unless_they_are_too_large",
    ),
    "CPU time of others is not counted": Mutant(
        "suite/run/counters.py",
        '("user", "nice", ',
        "(",
        f"{NEIGHBOURS}::test_all_but_idle_time_is_busy_time",
    ),
    "a disturbed run has no note": Mutant(
        "suite/report/notes.py",
        "        if r.disturbed is not None:",
        "        if False:",
        f"{NEIGHBOURS}::test_a_disturbed_run_is_always_shown_with_a_note",
    ),
    "nothing is removed after kill -9": Mutant(
        "suite/run/reaper.py",
        "            shutil.rmtree(path, ignore_errors=True)\n",
        "            pass\n",
        "suite/run/test_signals.py::test_a_killed_harness_leaves_nothing_behind",
    ),
    "a run outlives its harness": Mutant(
        "suite/run/worker.py",
        "prctl(PR_SET_PDEATHSIG, signal.SIGKILL",
        "prctl(PR_SET_PDEATHSIG, 0",
        f"{CHEATS}::test_a_run_ends_with_its_harness_even_without_a_reaper",
    ),
    "the scores of a submission are not compared": Mutant(
        "suite/records/rescore.py",
        "<= TOLERANCE",
        "<= 1",
        "suite/records/test_rescore.py::test_records_are_compared_with_their_submissions[a lie-False]",
    ),
    "a bench run does not wait for the device": Mutant(
        "suite/bench/timing.py",
        "        torch.cuda.synchronize()\n        return time.perf_counter() - began, start.elapsed_time",
        "        return time.perf_counter() - began, start.elapsed_time",
        f"{BENCH}::test_device_time_is_that_of_the_replay_behind_a_spin",
    ),
    "the seed is not part of the fit's name": Mutant(
        "suite/run/fits.py",
        "run.seed, ",
        "",
        "suite/run/test_fits.py::test_a_change_of_the_fit_changes_its_name",
    ),
    "boards mix parameters": Mutant(
        "suite/records/comparable.py",
        '"parameters": lambda r: r.config_hash',
        '"parameters": lambda r: ""',
        f"{COMPARABLE}::test_no_board_holds_both[parameters]",
    ),
    "boards mix machines": Mutant(
        "suite/records/comparable.py",
        '"machine": lambda r: machine.describe(r.machine)',
        '"machine": lambda r: ""',
        f"{COMPARABLE}::test_no_board_holds_both[machine]",
    ),
    "boards mix data": Mutant(
        "suite/records/comparable.py",
        '"data": lambda r: r.data_fingerprint',
        '"data": lambda r: ""',
        f"{COMPARABLE}::test_no_board_holds_both[data]",
    ),
    "no model error in projections": Mutant(
        "suite/analysis/scaling.py",
        "lows, highs = [low[kept].min()], [high[kept].max()]",
        "lows, highs = [low[best]], [high[best]]",
        "suite/analysis/test_intervals.py::test_projections",
    ),
    "the time of earlier sittings is lost": Mutant(
        "suite/run/runner.py",
        "gate.judge(sittings.total(built, earlier), run.task, others)",
        "gate.judge(built, run.task, others)",
        f"{SITTINGS}::test_a_resumed_run_does_only_what_is_left[polled]",
    ),
    "a run that failed goes on": Mutant(
        "suite/run/sittings.py",
        "        if interrupted:",
        "        if True:",
        f"{SITTINGS}::test_a_run_that_fails_does_not_go_on",
    ),
    "pieces without their time": Mutant(
        "suite/run/sittings.py",
        "exist_ok=earlier is not None",
        "exist_ok=True",
        f"{SITTINGS}::test_pieces_that_cannot_be_deleted_are_not_used",
    ),
    "a damaged piece is used": Mutant(
        "models/kept_pieces.py",
        "manifest.is_whole(folder)",
        "folder.is_dir()",
        f"{SITTINGS}::test_a_damaged_piece_is_made_again",
    ),
    "a compiler that is switched off": Mutant(
        "engine/infer/backends/torch_compile.py",
        "        if switched_off():",
        "        if False:",
        "engine/infer/test_sessions.py::test_a_compiler_that_is_switched_off_is_refused",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_matches_the_source_and_names_a_test(name: str) -> None:
    mutant = MUTANTS[name]
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    file, _, function = mutant.test.partition("::")
    assert f"def {function.partition('[')[0]}(" in (ROOT / "tests" / file).read_text()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout."""
    checkout = tmp_path_factory.mktemp("mutants") / "checkout"
    checkout.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__", "work")
            )
        else:
            shutil.copy(ROOT / name, checkout / name)
    return checkout


@pytest.mark.skipif(not THOROUGH, reason="with BUZZER_MUTANTS")
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_detected(name: str, copy: Path) -> None:
    mutant = MUTANTS[name]
    source = copy / mutant.file
    whole = source.read_text()
    assert run(copy, mutant.test) == 0, "the test fails without the mutant"
    source.write_text(whole.replace(mutant.old, mutant.new))
    try:
        assert run(copy, mutant.test) == 1, "the test passes with the mutant"
    finally:
        source.write_text(whole)


def run(checkout: Path, test: str) -> int:
    """pytest's exit code: 0 all passed, 1 some failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{test}"]
    where = os.environ | {"PYTHONPATH": str(checkout), "BUZZER_SOAK": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=checkout, env=where, capture_output=True, check=False).returncode

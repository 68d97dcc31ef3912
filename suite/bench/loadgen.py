"""Runs MLPerf scenarios with MLCommons LoadGen, which makes the queries, measures the times and gives the verdict.

SingleStream: each query is sent when the previous one is answered. Offline: all samples are sent at once. Server: queries arrive by a
Poisson process and have a latency bound (MLPerf Inference Rules, section 4).
"""

import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine.infer import Array, Session
from buzzer.errors import UnsupportedError, UsageError
from buzzer.models.api.bench import BenchModel
from buzzer.suite.bench.checks import Check

NAMES = {"single-stream": "SingleStream", "offline": "Offline", "server": "Server"}
TRIAL_S = 1.0  # seconds of trial runs, which measure the rate that LoadGen is to expect
# LoadGen's settings of seeds. MLPerf publishes new seeds for each round of submissions.
SEEDS = ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed")
SUMMARY, LOGS = "mlperf_log_summary.txt", "mlperf_log_*"
# The search for the rate of `server`: steps, the share of the duration that a trial takes, and the shares of the rate found at which
# the whole duration is run until one is VALID.
STEPS, TRIAL_SHARE, FINALS = 7, 0.1, (1.0, 0.95, 0.9)
TRIALS, P99 = "trials", "99.00 percentile latency (ns)"
SAMPLES = "MLPerf's {} settings of LoadGen, but with {} samples in its library instead of {:,}"
# Exits with 1 if LoadGen has no settings for a model. It reads its settings once in a process, so another process is asked.
KNOWS = """import sys, mlperf_loadgen as lg
test = lg.TestSettings()
failed = test.FromConfig(*sys.argv[1:], 1)
sys.exit(bool(failed or not test.performance_sample_count_override))"""
LATENCY, SERVER = "single-stream", "server"
VALID = "VALID"
HEADLINE = {  # the line of the summary by which runs are ranked: a time in nanoseconds for single-stream, else a rate
    "single-stream": "Early stopping 90.0th percentile estimate",
    "offline": "Samples per second",
    "server": "Completed samples per second",
}


class Rows:
    """Splits the model's batches into single samples, and joins samples into batches of the session's size."""

    def __init__(self, model: BenchModel, batch: int) -> None:
        self._batches, self.batch = model.batches, batch
        self.count = batch * len(model.batches)

    def batch_of(self, indices: list[int]) -> dict[str, Array]:
        """A batch of these samples. The last sample is repeated to fill the batch."""
        if self.batch == 1:
            return dict(self._batches[indices[0]])
        filled = indices + indices[-1:] * (self.batch - len(indices))
        at = [divmod(i, self.batch) for i in filled]
        names = self._batches[0]
        return {name: np.stack([self._batches[b][name][row] for b, row in at]) for name in names}

    def batches_of(self, answers: Mapping[int, Mapping[str, Array]]) -> dict[int, dict[str, Array]]:
        """The outputs of each batch whose rows were all answered, by the index of the batch."""
        batches = {}
        for number in range(len(self._batches)):
            parts = [answers.get(number * self.batch + row) for row in range(self.batch)]
            rows = [part for part in parts if part is not None]
            if len(rows) == self.batch:
                batches[number] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return batches


class Sut:
    """The system under test: answers LoadGen's queries from one worker thread, in the order of their arrival."""

    def __init__(self, session: Session, rows: Rows, lg: Any) -> None:
        self._session, self._rows, self._lg = session, rows, lg
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.answers: dict[int, dict[str, Array]] = {}  # the last outputs of each sample
        self.answered = 0
        self.error: BaseException | None = None
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def issue(self, samples: Any) -> None:
        """Queue the samples of a query. Called by LoadGen."""
        size = self._rows.batch
        for start in range(0, len(samples), size):
            self._waiting.put(samples[start : start + size])

    def flush(self) -> None:
        """Do nothing, because no samples are held back. Called by LoadGen."""

    def stop(self) -> None:
        """End the worker thread."""
        self._waiting.put(None)
        self._worker.join()

    def _work(self) -> None:
        while (samples := self._waiting.get()) is not None:
            indices, outputs = [s.index for s in samples], dict[str, Array]()
            try:
                if self.error is None:
                    outputs = self._session.run(self._rows.batch_of(indices))
            except BaseException as error:  # noqa: BLE001  raised after LoadGen has ended, because LoadGen cannot report a failure
                self.error = error
            self._lg.QuerySamplesComplete([self._lg.QuerySampleResponse(s.id, 0, 0) for s in samples])
            self.answered += len(samples)
            if self.error is None:
                for at, index in enumerate(indices):
                    self.answers[index] = {name: array[at] for name, array in outputs.items()}


@dataclass(frozen=True)
class Scenario:
    """An MLPerf scenario and its settings."""

    name: str  # "single-stream", "offline" or "server"
    batch: int
    min_duration: float  # least seconds that LoadGen runs
    qps: float  # queries per second of `server`; 0 = the highest rate that keeps the bound, found by trials
    bound: float  # latency bound of `server` in milliseconds
    seeds: Sequence[int]  # for the library, the samples and the schedule
    mlperf: str = ""  # MLPerf's name of the model, whose official settings are used: duration, bound, seeds, number of queries

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> "Scenario":
        """The scenario in the parameters of a bench run."""
        times = (float(params["min_duration"]), float(params["qps"]), float(params["bound"]))
        seeds, mlperf = params["loadgen_seeds"], params.get("mlperf", "")
        return cls(params["scenario"], params["batch"], *times, seeds, mlperf)

    def check(self) -> None:
        """Raises UnsupportedError if LoadGen is not installed, UsageError for a batch size or a model that it does not have."""
        library()
        self.check_batch()
        if self.mlperf:
            asked = [sys.executable, "-c", KNOWS, os.devnull, self.mlperf, NAMES[self.name]]
            if subprocess.run(asked, capture_output=True, check=False).returncode:
                raise self.unknown()

    def check_batch(self) -> None:
        """Raises UsageError for a batch size that the scenario does not allow."""
        if self.batch > 1 and self.name != "offline":
            raise UsageError(f"{self.name} queries are single samples", "use --batch 1")

    def unknown(self) -> UsageError:
        """The error for a model that LoadGen has no settings for."""
        return UsageError(f"LoadGen has no settings for a model {self.mlperf}", "MLPerf's name of BERT: bert")


@dataclass(frozen=True)
class Verdict:
    """LoadGen's summary."""

    result: str  # "VALID" or "INVALID"
    summary: dict[str, str]  # name -> value of each line
    line: str  # the figure of the scenario, in words
    notes: tuple[str, ...] = ()  # important remarks for readers of the record

    def summarised(self) -> dict[str, Any]:
        """The field `bench.loadgen` of a record."""
        return {"result": self.result, "summary": self.summary, "line": self.line}


def library() -> Any:
    """LoadGen's module. Raises UnsupportedError if it is not installed."""
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise UnsupportedError(
            "MLCommons LoadGen is not installed", "pip install 'buzzer[mlperf]'"
        ) from error
    return mlperf_loadgen


def run(
    session: Session, model: BenchModel, check: Check, scenario: Scenario, out: Path
) -> tuple[int, Verdict]:
    """Run a scenario. Returns the number of answered samples and LoadGen's verdict. LoadGen's logs go to `out`.

    Raises UnsupportedError if LoadGen is not installed, UsageError for a batch size or a model that it does not have.
    """
    lg, rows = library(), Rows(model, scenario.batch)
    scenario.check_batch()
    rate = rows_per_second(session, model)
    out.mkdir(parents=True, exist_ok=True)
    test, notes = settings(lg, scenario, rate, out), list[str]()
    if scenario.mlperf:
        notes.append(SAMPLES.format(scenario.mlperf, rows.count, test.performance_sample_count_override))
        test.performance_sample_count_override = 0

    def measure(folder: Path) -> tuple[Sut, Verdict]:
        return one_test(lg, session, rows, test, folder), verdict(folder, scenario.name)

    if scenario.name == SERVER and not scenario.qps:
        test.server_target_qps, note = highest_rate(test, rate, out / TRIALS, lambda at: measure(at)[1])
        notes.append(note)
        found = test.server_target_qps
        for share in FINALS:
            test.server_target_qps = found * share
            sut, summary = measure(out)
            if summary.result == VALID:
                break
    else:
        sut, summary = measure(out)
    for index, outputs in rows.batches_of(sut.answers).items():
        check.add(index, outputs)
    return sut.answered, replace(summary, notes=tuple(notes))


def one_test(lg: Any, session: Session, rows: Rows, test: Any, out: Path) -> Sut:
    """Run LoadGen once, with its logs in `out`. Raises what the session raises."""
    out.mkdir(parents=True, exist_ok=True)
    sut = Sut(session, rows, lg)
    handles = lg.ConstructSUT(sut.issue, sut.flush), lg.ConstructQSL(rows.count, rows.count, _none, _none)
    try:
        lg.StartTestWithLogSettings(*handles, test, logs(lg, out))
    finally:
        sut.stop()
        lg.DestroyQSL(handles[1])
        lg.DestroySUT(handles[0])
    if sut.error is not None:
        raise sut.error
    return sut


def highest_rate(
    test: Any, fastest: float, out: Path, measure: Callable[[Path], Verdict]
) -> tuple[float, str]:
    """The highest rate of queries, below `fastest`, at which the 99th percentile of the latency keeps its bound in a short trial, and a note.

    Found by bisection. LoadGen's verdict on a trial is not used: it demands more queries than a trial has.
    """
    whole, low, high = test.min_duration_ms, 0.0, fastest
    test.min_duration_ms = int(whole * TRIAL_SHARE)
    for step in range(STEPS):
        test.server_target_qps = (low + high) / 2
        p99 = figure_of(measure(out / str(step)).summary, P99)
        kept = p99 is not None and p99 <= test.server_target_latency_ns
        low, high = (test.server_target_qps, high) if kept else (low, test.server_target_qps)
    test.min_duration_ms = whole
    found = low or high  # if no trial kept the bound, the lowest rate that was tried
    trial_s = whole * TRIAL_SHARE / 1000
    return (
        found,
        f"rate {found:.4g}/s found by {STEPS} trials of {trial_s:g} s, below {fastest:.4g}/s one after another",
    )


def _none(samples: Any) -> None:
    """Do nothing: the samples are already in memory."""


def rows_per_second(session: Session, model: BenchModel) -> float:
    """Rows per second of a trial in which runs follow one another."""
    began, done, index = time.perf_counter(), 0, 0
    while time.perf_counter() - began < TRIAL_S or index == 0:
        session.run(model.batches[index % len(model.batches)])
        done += model.rows[index % len(model.batches)]
        index += 1
    return done / (time.perf_counter() - began)


def settings(lg: Any, scenario: Scenario, rate: float, out: Path) -> Any:
    """LoadGen's test settings. Other settings keep LoadGen's defaults. `rate`: rows per second that the session can answer."""
    test = lg.TestSettings()
    test.scenario = getattr(lg.TestScenario, NAMES[scenario.name])
    test.mode = lg.TestMode.PerformanceOnly
    if scenario.mlperf:
        official(test, scenario, out)
    else:
        test.min_duration_ms = int(1000 * scenario.min_duration)
        test.server_target_latency_ns = int(1e6 * scenario.bound)
        test.server_target_latency_percentile = 0.99
        for name, seed in zip(SEEDS, scenario.seeds, strict=True):
            setattr(test, name, seed)
    test.single_stream_expected_latency_ns = int(1e9 / rate)
    test.offline_expected_qps = rate
    test.server_target_qps = scenario.qps or rate / 2
    return test


def official(test: Any, scenario: Scenario, out: Path) -> None:
    """Apply MLPerf's settings of a model, which LoadGen contains: its mlperf.conf.

    LoadGen reads them once in a process. Raises UsageError for a model that it has no settings for.
    """
    user = out / "user.conf"  # LoadGen demands the user's own settings, of which there are none
    user.write_text("")
    failed = test.FromConfig(str(user), scenario.mlperf, NAMES[scenario.name], 1)
    if failed or not test.performance_sample_count_override:
        raise scenario.unknown()


def logs(lg: Any, out: Path) -> Any:
    """LoadGen's log settings: files in `out`, nothing on stdout."""
    output = lg.LogOutputSettings()
    output.outdir = str(out)
    output.copy_summary_to_stdout = False
    log = lg.LogSettings()
    log.log_output = output
    log.enable_trace = False
    return log


def verdict(out: Path, scenario: str) -> Verdict:
    """LoadGen's verdict, from the `name : value` lines of its summary file."""
    summary: dict[str, str] = {}
    for line in (out / SUMMARY).read_text().splitlines():
        name, colon, value = line.partition(":")
        if colon and value.strip():
            summary[name.strip(" *")] = value.strip()
    text = shown_figure({"summary": summary}, scenario) or "not given"
    return Verdict(summary.get("Result is", "INVALID"), summary, f"{HEADLINE[scenario]} {text}")


def shown_figure(verdict: Mapping[str, Any] | None, scenario: str) -> str:
    """LoadGen's figure for the scenario with its unit; empty if there is none."""
    figure = headline(verdict, scenario)
    if figure is None:
        return ""
    return f"{figure / 1e6:.4g} ms" if scenario == LATENCY else f"{figure:.6g} samples/s"


def verdict_text(verdict: Mapping[str, Any], scenario: str) -> str:
    """LoadGen's verdict with its figure, from a record: `LoadGen VALID, 1234.5 samples/s`."""
    name = f"{HEADLINE[scenario]} " if scenario == LATENCY else ""  # a rate is named by its unit
    return f"LoadGen {verdict.get('result')}, {name}{shown_figure(verdict, scenario) or 'no figure'}"


def headline(verdict: Mapping[str, Any] | None, scenario: str) -> float | None:
    """LoadGen's figure for the scenario, from a record: nanoseconds for single-stream, else samples per second; None if there is none."""
    summary = (verdict or {}).get("summary")
    return figure_of(summary, HEADLINE[scenario]) if isinstance(summary, dict) else None


def figure_of(summary: Mapping[str, Any], wanted: str) -> float | None:
    """A number above zero in LoadGen's summary, by the name of its line; None if there is none."""
    text = next((value for name, value in summary.items() if str(name).lower() == wanted.lower()), None)
    try:
        figure = float(str(text))
    except ValueError:
        return None
    return figure if math.isfinite(figure) and figure > 0 else None


def row_s(verdict: Mapping[str, Any] | None, scenario: str) -> float:
    """Seconds per sample by the headline figure; infinite if there is none."""
    figure = headline(verdict, scenario)
    if figure is None:
        return math.inf
    return figure / 1e9 if scenario == LATENCY else 1 / figure


def valid(verdict: Mapping[str, Any] | None) -> bool:
    """Whether LoadGen called the run valid."""
    return (verdict or {}).get("result") == VALID

"""MLPerf scenarios driven by MLCommons LoadGen: it makes the queries, keeps the clock and gives the verdict.

SingleStream: the next query when the last is answered. Offline: all samples at once. Server: Poisson arrivals under a latency
bound (MLPerf Inference Rules, section 4).
"""

import math
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine.infer import Array, Session
from buzzer.errors import UnsupportedError, UsageError
from buzzer.models.api.bench import BenchModel

NAMES = {"single-stream": "SingleStream", "offline": "Offline", "server": "Server"}
TRIAL_S = 1.0  # of runs that tell LoadGen what rate to expect
SEEDS = ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed")  # MLPerf gives new ones each round
SUMMARY, LOGS = "mlperf_log_summary.txt", "mlperf_log_*"
LATENCY = "single-stream"  # the one whose figure is a time
HEADLINE = {
    "single-stream": "Early stopping 90.0th percentile estimate",
    "offline": "Samples per second",
    "server": "Completed samples per second",
}


class Rows:
    """The target's batches as single samples, and back into batches of the session's size."""

    def __init__(self, loaded: BenchModel, batch: int) -> None:
        self._batches, self.batch = loaded.batches, batch
        self.count = batch * len(loaded.batches)

    def together(self, indices: list[int]) -> dict[str, Array]:
        """Samples side by side; the last is repeated where they do not fill a batch."""
        if self.batch == 1:
            return dict(self._batches[indices[0]])
        filled = indices + indices[-1:] * (self.batch - len(indices))
        at = [divmod(i, self.batch) for i in filled]
        names = self._batches[0]
        return {name: np.stack([self._batches[b][name][row] for b, row in at]) for name in names}

    def batches_of(self, answers: Mapping[int, Mapping[str, Array]]) -> dict[int, dict[str, Array]]:
        """The target's batches of which every row was answered, with their outputs."""
        found = {}
        for number in range(len(self._batches)):
            parts = [answers.get(number * self.batch + row) for row in range(self.batch)]
            told = [part for part in parts if part is not None]
            if len(told) == self.batch:
                found[number] = {name: np.stack([part[name] for part in told]) for name in told[0]}
        return found


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
        size = self._rows.batch
        for start in range(0, len(samples), size):
            self._waiting.put(samples[start : start + size])

    def flush(self) -> None:
        """Nothing is held back."""

    def stop(self) -> None:
        self._waiting.put(None)
        self._worker.join()

    def _work(self) -> None:
        while (samples := self._waiting.get()) is not None:
            indices = [s.index for s in samples]
            try:
                if self.error is None:
                    outputs = self._session.run(self._rows.together(indices))
            except BaseException as error:  # noqa: BLE001  told after LoadGen has ended; it knows no failure
                self.error = error
            self._lg.QuerySamplesComplete([self._lg.QuerySampleResponse(s.id, 0, 0) for s in samples])
            self.answered += len(samples)
            if self.error is None:
                for at, index in enumerate(indices):
                    self.answers[index] = {name: array[at] for name, array in outputs.items()}


def run(
    session: Session, loaded: BenchModel, check: Any, params: Mapping[str, Any], out: Path
) -> dict[str, Any]:
    """LoadGen's verdict and figures under `loadgen`, and `rows`, the samples answered.

    Raises UnsupportedError where LoadGen is not installed, UsageError for sizes that a scenario has not.
    """
    try:
        import mlperf_loadgen as lg
    except ImportError as error:
        raise UnsupportedError(
            "MLCommons LoadGen is not installed", "pip install 'buzzer[mlperf]'"
        ) from error
    scenario = params["scenario"]
    rows = Rows(loaded, params["batch"])
    if rows.batch > 1 and scenario != "offline":
        raise UsageError(f"{scenario} queries are single samples", "use --batch 1")
    rate = trial(session, loaded)
    out.mkdir(parents=True, exist_ok=True)
    sut = Sut(session, rows, lg)
    handles = lg.ConstructSUT(sut.issue, sut.flush), lg.ConstructQSL(rows.count, rows.count, _none, _none)
    try:
        lg.StartTestWithLogSettings(*handles, settings(lg, params, rate), logs(lg, out))
    finally:
        sut.stop()
        lg.DestroyQSL(handles[1])
        lg.DestroySUT(handles[0])
    if sut.error is not None:
        raise sut.error
    for index, outputs in rows.batches_of(sut.answers).items():
        check.take(index, outputs)
    return {"rows": sut.answered, "loadgen": verdict(out, scenario)}


def _none(samples: Any) -> None:
    """Samples are in memory already."""


def trial(session: Session, loaded: BenchModel) -> float:
    """Rows a second, run after run."""
    began, done, index = time.perf_counter(), 0, 0
    while time.perf_counter() - began < TRIAL_S or index == 0:
        session.run(loaded.batches[index % len(loaded.batches)])
        done += loaded.rows[index % len(loaded.batches)]
        index += 1
    return done / (time.perf_counter() - began)


def settings(lg: Any, params: Mapping[str, Any], rate: float) -> Any:
    """LoadGen's settings for a scenario; what is not set here is LoadGen's default."""
    found = lg.TestSettings()
    found.scenario = getattr(lg.TestScenario, NAMES[params["scenario"]])
    found.mode = lg.TestMode.PerformanceOnly
    found.min_duration_ms = int(1000 * params["min_duration"])
    found.single_stream_expected_latency_ns = int(1e9 / rate)
    found.offline_expected_qps = rate
    found.server_target_qps = params["qps"] or rate / 2
    found.server_target_latency_ns = int(1e6 * params["bound"])
    found.server_target_latency_percentile = 0.99
    for name, seed in zip(SEEDS, params["loadgen_seeds"], strict=True):
        setattr(found, name, seed)
    return found


def logs(lg: Any, out: Path) -> Any:
    where = lg.LogOutputSettings()
    where.outdir = str(out)
    where.copy_summary_to_stdout = False
    found = lg.LogSettings()
    found.log_output = where
    found.enable_trace = False
    return found


def verdict(out: Path, scenario: str) -> dict[str, Any]:
    """LoadGen's summary: every `name : value` line, and its verdict apart."""
    summary: dict[str, str] = {}
    for line in (out / SUMMARY).read_text().splitlines():
        name, colon, value = line.partition(":")
        if colon and value.strip():
            summary[name.strip(" *")] = value.strip()
    found: dict[str, Any] = {"result": summary.get("Result is", "INVALID"), "summary": summary}
    figure = headline(found, scenario)
    told = (
        "not told" if figure is None else f"{figure / 1e6:.4g} ms" if scenario == LATENCY else f"{figure:.6g}"
    )
    return found | {"line": f"{HEADLINE[scenario]} {told}"}


def headline(verdict: Mapping[str, Any] | None, scenario: str) -> float | None:
    """LoadGen's figure for the scenario: nanoseconds for single-stream, else samples a second; None where it gave none."""
    summary = (verdict or {}).get("summary")
    lines = summary.items() if isinstance(summary, dict) else ()
    text = next((value for name, value in lines if str(name).lower() == HEADLINE[scenario].lower()), None)
    try:
        figure = float(str(text))
    except ValueError:
        return None
    return figure if math.isfinite(figure) and figure > 0 else None


def row_s(verdict: Mapping[str, Any] | None, scenario: str) -> float:
    """Seconds of a sample by that figure; infinite where there is none."""
    figure = headline(verdict, scenario)
    if figure is None:
        return math.inf
    return figure / 1e9 if scenario == LATENCY else 1 / figure


def valid(verdict: Mapping[str, Any] | None) -> bool:
    return (verdict or {}).get("result") == "VALID"

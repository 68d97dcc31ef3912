"""Times the runs of a session: warm runs, cold runs, and runs on unseen inputs."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from buzzer.engine.infer import Array, Session, roofline
from buzzer.engine.infer.session import Staging
from buzzer.models.api.bench import Batch, BenchModel
from buzzer.suite.bench.checks import Check

FLUSH = 4  # size of the buffer that is read before a cold run, as a multiple of the last-level cache
WARMUP_S, WARMUP_RUNS = 1.0, 5
LEAST_RUNS = 4  # least runs of a slow session; two rounds then have the seven runs that a median needs


@dataclass(frozen=True)
class Sampling:
    """How many warm runs are timed, and how many cold runs."""

    count: int  # least number of runs
    seconds: float  # least seconds
    at_most: float  # seconds after which a slow session is stopped, with fewer runs


@dataclass
class Samples:
    """Seconds of each timed run."""

    wall: list[float] = field(default_factory=list)
    device: list[float] = field(default_factory=list)  # between two device events; empty on a CPU
    rows: int = 0  # rows in all runs


class UnseenSamples(NamedTuple):
    """Seconds of runs on unseen inputs, and of runs on the inputs that these were made from. Equal indices are a pair."""

    unseen: list[float]
    seen: list[float]


class Timer:
    """Times runs of a session: always the wall time, and on a GPU the device time between two events."""

    def __init__(self, session: Session, model: BenchModel, check: Check, device: str) -> None:
        self._session, self._model, self._check = session, model, check
        self._events: Any = None
        if device == "cuda":
            import torch

            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def measure(self, sampling: Sampling, before: Callable[[], None]) -> Samples:
        """Time as many runs as `sampling` says, and every input at least once. `before` is called before each run and is not timed.

        The limits in seconds include `before` and the comparison of outputs. Otherwise the cache would be flushed for minutes for a
        model that takes microseconds.
        """
        samples, batches, began, spent = Samples(), self._model.batches, time.perf_counter(), 0.0
        while len(samples.wall) < max(sampling.count, len(batches)) or spent < sampling.seconds:
            if len(samples.wall) >= LEAST_RUNS and spent >= sampling.at_most:
                break
            index = len(samples.wall) % len(batches)
            before()
            self._session.poison()
            wall, device, outputs = self._run(batches[index])
            if self._events is not None and isinstance(self._session, Staging):
                before()
                self._session.poison()
                device, outputs = self._replay(batches[index])
            samples.wall.append(wall)
            samples.device += [] if device is None else [device]
            samples.rows += self._model.rows[index]
            self._check.add(index, outputs)
            spent = time.perf_counter() - began
        return samples

    def unseen(self) -> UnseenSamples:
        """Time runs on unseen inputs, and as many runs on seen inputs, with the time by which sessions are ranked.

        Each seen input is run once more right before it is timed. A session that caches answers then has the answer, however few it
        caches.
        """
        samples = UnseenSamples([], [])
        for index, (number, batch) in enumerate(self._model.unseen, len(self._model.batches)):
            seen = self._model.batches[number]
            self._time_ranked(seen)
            samples.seen.append(self._checked(number, seen))
            samples.unseen.append(self._checked(index, batch))
        return samples

    def _checked(self, index: int, batch: Batch) -> float:
        self._session.poison()
        seconds, outputs = self._time_ranked(batch)
        self._check.add(index, outputs)
        return seconds

    def _time_ranked(self, batch: Batch) -> tuple[float, dict[str, Array]]:
        """Device time without the copies for a session that has stages, else wall time."""
        if self._events is not None and isinstance(self._session, Staging):
            return self._replay(batch)
        wall, _, outputs = self._run(batch)
        return wall, outputs

    def _run(self, batch: Mapping[str, Array]) -> tuple[float, float | None, dict[str, Array]]:
        if self._events is None:
            began = time.perf_counter()
            outputs = self._session.run(batch)
            return time.perf_counter() - began, None, outputs
        import torch

        start, end = self._events
        torch.cuda.synchronize()
        began = time.perf_counter()
        start.record()
        outputs = self._session.run(batch)
        end.record()
        torch.cuda.synchronize()
        return time.perf_counter() - began, start.elapsed_time(end) / 1000, outputs

    def _replay(self, batch: Mapping[str, Array]) -> tuple[float, dict[str, Array]]:
        """Device time without the copies: the inputs are copied to the device before."""
        import torch

        session, (start, end) = self._session, self._events
        assert isinstance(session, Staging)
        staged = session.stage(batch)
        torch.cuda.synchronize()
        torch.cuda._sleep(roofline.SPIN_CYCLES)  # the work is enqueued before the first event is reached
        start.record()
        session.replay(staged)
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000, session.fetch(staged)


def no_flush() -> None:
    """Do nothing. Called before a warm run."""


def flusher(device: str) -> Callable[[], None]:
    """A function that evicts the model from the last-level cache by reading and writing a larger buffer.

    On a GPU a second buffer is read afterwards. Otherwise the run would have to wait until the modified lines are written back.
    """
    if device == "cuda":
        import torch

        size = FLUSH * torch.cuda.get_device_properties(0).L2_cache_size
        buffer, clean = (torch.zeros(size // 4, device="cuda") for _ in range(2))

        def flush_device() -> None:
            buffer.add_(1)
            clean.sum()
            torch.cuda.synchronize()

        return flush_device
    from buzzer.engine.device import cache_bytes

    words = np.zeros(FLUSH * cache_bytes() // 8, dtype=np.int64)

    def flush() -> None:
        np.add(words, 1, out=words)

    return flush


def first_of_each_shape(model: BenchModel) -> list[int]:
    """The index of the first input of each shape. They are run in phase `compile`, because backends compile for each shape."""
    shapes = {tuple(a.shape for a in batch.values()): i for i, batch in reversed([*enumerate(model.batches)])}
    return sorted(shapes.values())


def warm_up(session: Session, model: BenchModel, at_most: float) -> None:
    """Do at least `WARMUP_RUNS` runs and at least `WARMUP_S` seconds of them; stop earlier after a tenth of `at_most` seconds."""
    began, spent, runs = time.perf_counter(), 0.0, 0
    while (runs < WARMUP_RUNS or spent < WARMUP_S) and not (runs and spent >= at_most / 10):
        session.run(model.batches[runs % len(model.batches)])
        runs, spent = runs + 1, time.perf_counter() - began


def gpu_state(device: str) -> dict[str, float] | None:
    """Clock of the multiprocessors in MHz, power in watts and temperature in degrees Celsius, by NVML; None if unavailable."""
    if device != "cuda":
        return None
    import torch

    try:
        return {
            "sm_mhz": torch.cuda.clock_rate(),
            "power_w": torch.cuda.power_draw() / 1000,
            "temperature_c": torch.cuda.temperature(),
        }
    except Exception:  # noqa: BLE001  no bindings, or no such counter on this GPU: the run continues
        return None

"""Energy and GPU use of the machine during a run, from hardware counters; None if a counter is unavailable.

The counters count the whole machine, not only the run: they include what other processes do at the same time. CPU energy comes from
RAPL (Linux powercap, package domains); energy, memory and utilisation of the GPU come from NVML.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from buzzer.engine.device import nvml

POWERCAP = Path("/sys/class/powercap")


def gpu_memory_used(library: Any) -> int | None:
    """Bytes in use on all GPUs together, used by any process; None if NVML is unavailable."""
    if library is None:
        return None
    try:
        handles = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
        return sum(library.nvmlDeviceGetMemoryInfo(h).used for h in handles)
    except library.NVMLError:
        return None


@dataclass
class Rapl:
    """Energy counter of one processor package, in microjoules; it wraps around at `limit`."""

    path: Path
    limit: int
    last: int
    total: int = 0

    def sample(self) -> None:
        """Read the counter. Must be called at least once between two wrap-arounds."""
        now = int(self.path.read_text())
        self.total += now - self.last if now >= self.last else now - self.last + self.limit
        self.last = now


def rapl(folder: Path) -> list[Rapl]:
    """The counters that this process may read; none in most containers and without root."""
    counters = []
    with suppress(OSError, ValueError):
        for package in sorted(folder.glob("intel-rapl:?")):  # AMD's processors have the same name here
            counter = package / "energy_uj"
            limit = int((package / "max_energy_range_uj").read_text())
            counters.append(Rapl(counter, limit, int(counter.read_text())))
        return counters
    return []


def missing() -> dict[str, str]:
    """Why each kind of counter cannot be read here; "" if it can."""
    return {
        "CPU energy": "" if rapl(POWERCAP) else f"no readable RAPL counter in {POWERCAP}; root may be needed",
        "GPU use and energy": "" if nvml() else "no NVML; install buzzer[gpu] and the driver",
    }


class Gpu:
    """All GPUs of the machine together: joules, busy seconds, and peak memory above what was in use before."""

    def __init__(self, library: Any, now: Callable[[], float] = time.perf_counter) -> None:
        self._nvml, self._now = library, now
        self._handles = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
        self._energy = self._read_energy()
        self._memory, self._time = self._used(), now()
        self.busy_s, self.peak_memory_bytes = 0.0, 0

    def sample(self) -> None:
        """Read utilisation and memory. The utilisation is counted for the time since the last call."""
        now = self._now()
        shares = [self._nvml.nvmlDeviceGetUtilizationRates(h).gpu / 100 for h in self._handles]
        self.busy_s += max(shares, default=0.0) * (now - self._time)
        self._time = now
        self.peak_memory_bytes = max(self.peak_memory_bytes, self._used() - self._memory)

    def energy_j(self) -> float | None:
        """Joules since the start; None on GPUs older than Volta, which have no such counter."""
        now = self._read_energy()
        return None if now is None or self._energy is None else (now - self._energy) / 1000

    def _used(self) -> int:
        return sum(self._nvml.nvmlDeviceGetMemoryInfo(h).used for h in self._handles)

    def _read_energy(self) -> int | None:
        try:
            return sum(self._nvml.nvmlDeviceGetTotalEnergyConsumption(h) for h in self._handles)
        except self._nvml.NVMLError:
            return None


class Neighbours:
    """CPU time that is used on the cores of a run by other processes, by interrupts and by the hypervisor (steal)."""

    def __init__(self, cores: Sequence[int]) -> None:
        self._cores = cores
        self._before = busy_s(cores)

    def cpu_s(self, own_s: float | None) -> float | None:
        """CPU seconds since the start, less the `own_s` of the run itself; None if unavailable."""
        now = busy_s(self._cores)
        if now is None or self._before is None or own_s is None:
            return None
        return max(now - self._before - own_s, 0.0)


def busy_s(cores: Sequence[int]) -> float | None:
    """Seconds since boot in which these cores were busy or taken by the hypervisor (Linux); None if a core has no such counter."""
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    try:
        times = psutil.cpu_times(percpu=True)
        return sum(getattr(times[core], name) for core in cores for name in names)
    except (OSError, IndexError, AttributeError, RuntimeError):
        return None


@dataclass(frozen=True)
class Readings:
    """What the counters measured; None if a counter is unavailable."""

    energy_j: dict[str, float] | None = None  # joules by source: "cpu", "gpu"
    gpu_busy_s: float | None = None
    gpu_peak_memory_bytes: int | None = None  # above what was in use before


class Meter:
    """Measures with all counters from its creation to the first `stop`.

    Call `sample` often: energy counters wrap around, and utilisation is a momentary value.
    """

    def __init__(self, device: str, folder: Path = POWERCAP, library: Any = None) -> None:
        self._packages = rapl(folder)
        library = library or (nvml() if device == "cuda" else None)
        self._gpu = None if library is None else Gpu(library)
        self._readings: Readings | None = None

    def sample(self) -> None:
        """Read the counters."""
        for package in self._packages:
            package.sample()
        if self._gpu is not None:
            self._gpu.sample()

    def stop(self) -> Readings:
        """The readings up to the first call of `stop`."""
        self._readings = self._readings or self._final()
        return self._readings

    def _final(self) -> Readings:
        self.sample()
        energy = {"cpu": sum(p.total for p in self._packages) / 1e6} if self._packages else {}
        if self._gpu is None:
            return Readings(energy or None)
        if (joules := self._gpu.energy_j()) is not None:
            energy["gpu"] = joules
        return Readings(energy or None, self._gpu.busy_s, self._gpu.peak_memory_bytes)

"""Energy and GPU use of the machine while a run goes on, from its own counters; None where there is no counter.

The counters are the machine's, not the run's: what others do at the same time is in them. Energy of the processor is
RAPL's (Linux powercap, package domains), energy, memory and utilisation of the GPU are NVML's.
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
    """Bytes in use on all GPUs together, whoever uses them; None where NVML does not tell."""
    if library is None:
        return None
    try:
        handles = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
        return sum(library.nvmlDeviceGetMemoryInfo(h).used for h in handles)
    except library.NVMLError:
        return None


@dataclass
class Rapl:
    """One processor package's energy counter, in microjoules; it wraps around at `limit`."""

    path: Path
    limit: int
    last: int
    total: int = 0

    def look(self) -> None:
        now = int(self.path.read_text())
        self.total += now - self.last if now >= self.last else now - self.last + self.limit
        self.last = now


def rapl(folder: Path) -> list[Rapl]:
    """The packages' counters that this process may read; none in most containers and without root."""
    found = []
    with suppress(OSError, ValueError):
        for package in sorted(folder.glob("intel-rapl:?")):  # AMD's processors have the same name here
            counter = package / "energy_uj"
            limit = int((package / "max_energy_range_uj").read_text())
            found.append(Rapl(counter, limit, int(counter.read_text())))
        return found
    return []


def missing() -> dict[str, str]:
    """Why each kind of counter cannot be read here, or ""."""
    return {
        "CPU energy": "" if rapl(POWERCAP) else f"no readable RAPL counter in {POWERCAP}; root may be needed",
        "GPU use and energy": "" if nvml() else "no NVML; install buzzer[gpu] and the driver",
    }


class Gpu:
    """All GPUs of the machine together: joules, busy seconds, and the most memory above what was in use before."""

    def __init__(self, library: Any, now: Callable[[], float] = time.perf_counter) -> None:
        self._nvml, self._now = library, now
        self._handles = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
        self._energy = self._read_energy()
        self._memory, self._time = self._used(), now()
        self.busy_s, self.peak_memory_bytes = 0.0, 0

    def look(self) -> None:
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
    """What others took on the cores of a run while it ran: processes, interrupts, and the hypervisor (steal)."""

    def __init__(self, cores: Sequence[int]) -> None:
        self._cores = cores
        self._before = busy_s(cores)

    def cpu_s(self, own_s: float | None) -> float | None:
        """CPU seconds since the start less the run's own; None where the system does not tell."""
        now = busy_s(self._cores)
        if now is None or self._before is None or own_s is None:
            return None
        return max(now - self._before - own_s, 0.0)


def busy_s(cores: Sequence[int]) -> float | None:
    """Seconds since boot in which these cores were not idle, or not ours (Linux); None where it is not told core by core."""
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    try:
        told = psutil.cpu_times(percpu=True)
        return sum(getattr(told[core], name) for core in cores for name in names)
    except (OSError, IndexError, AttributeError, RuntimeError):
        return None


class Meter:
    """Starts at its making; `look` now and then (counters wrap, utilisation is momentary), then `stop`."""

    def __init__(self, device: str, folder: Path = POWERCAP, library: Any = None) -> None:
        self._packages = rapl(folder)
        library = library or (nvml() if device == "cuda" else None)
        self._gpu = None if library is None else Gpu(library)
        self._final: dict[str, Any] | None = None

    def look(self) -> None:
        for package in self._packages:
            package.look()
        if self._gpu is not None:
            self._gpu.look()

    def stop(self) -> dict[str, Any]:
        """`energy_j`, `gpu_busy_s` and `gpu_peak_memory_bytes` of a record, until the first call."""
        self._final = self._final or self._fields()
        return self._final

    def _fields(self) -> dict[str, Any]:
        self.look()
        energy = {"cpu": sum(p.total for p in self._packages) / 1e6} if self._packages else {}
        gpu = self._gpu
        if gpu is not None and (joules := gpu.energy_j()) is not None:
            energy["gpu"] = joules
        return {
            "energy_j": energy or None,
            "gpu_busy_s": None if gpu is None else gpu.busy_s,
            "gpu_peak_memory_bytes": None if gpu is None else gpu.peak_memory_bytes,
        }

from pathlib import Path
from typing import Any

import pytest

from buzzer.suite.run.counters import Gpu, Meter, Readings


class Nvml:
    """One GPU whose counters the test sets."""

    class NVMLError(Exception):
        pass

    used, share, millijoules = 10**9, 0, 5_000

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return type("Rates", (), {"gpu": self.share})

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return type("Memory", (), {"used": self.used})

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if self.millijoules < 0:
            raise self.NVMLError
        return self.millijoules


def package(folder: Path, name: str, value: int) -> Path:
    (folder / name).mkdir()
    (folder / name / "max_energy_range_uj").write_text("1000000000\n")
    counter = folder / name / "energy_uj"
    counter.write_text(f"{value}\n")
    return counter


def test_rapl_packages_add_up_and_may_wrap_around(tmp_path: Path) -> None:
    first, second = package(tmp_path, "intel-rapl:0", 999_000_000), package(tmp_path, "intel-rapl:1", 0)
    meter = Meter("cpu", tmp_path)
    first.write_text("1000000")  # wrapped around: 2 J
    meter.sample()
    first.write_text("3000000")  # 2 J more
    second.write_text("500000")  # half a joule
    assert meter.stop().energy_j == {"cpu": pytest.approx(4.5)}


def test_without_counters_the_readings_are_none(tmp_path: Path) -> None:
    assert Meter("cpu", tmp_path).stop() == Readings(None, None, None)


def test_gpu_memory_is_counted_above_the_use_before_the_run() -> None:
    nvml, clock = Nvml(), iter([0.0, 1.0, 3.0])
    gpu = Gpu(nvml, lambda: next(clock))
    nvml.share, nvml.used, nvml.millijoules = 50, 4 * 10**9, 7_000
    gpu.sample()
    nvml.share, nvml.used = 100, 2 * 10**9
    gpu.sample()
    assert (gpu.busy_s, gpu.peak_memory_bytes, gpu.energy_j()) == (2.5, 3 * 10**9, 2.0)


def test_an_old_gpu_has_no_energy_counter(tmp_path: Path) -> None:
    nvml = Nvml()
    nvml.millijoules = -1
    readings = Meter("cuda", tmp_path, nvml).stop()
    assert (readings.energy_j, readings.gpu_busy_s) == (None, 0.0)

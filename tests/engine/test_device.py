"""Facts about processors and GPUs, with stand-ins for the GPU libraries."""

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from buzzer.engine import device

GB = 10**9


@pytest.mark.parametrize(
    ("text", "name", "simd"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: sse avx2 avx512f avx512_bf16\n\nprocessor\t: 1\n", "AMD EPYC", "AVX-512 BF16"),
        ("model name\t: AMD EPYC\nflags\t\t: sse avx2\n", "AMD EPYC", "AVX2"),
        ("model name\t: Core\nflags\t\t: avx2 avx_vnni\n", "Core", "AVX-VNNI"),
        ("processor\t: 0\nFeatures\t: fp asimd sve\n\n", None, "SVE"),
        ("flags\t\t: sse\n", None, ""),
        (None, None, ""),
    ],
)  # fmt: skip
def test_processors_of_the_same_name_differ_in_simd(
    text: str | None, name: str | None, simd: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "cpuinfo")
    if text is not None:
        device.CPUINFO.write_text(text)
    assert device.simd() == simd
    assert device.saturates() == (simd == "AVX2")
    assert device.cpu_name() == (name or platform.processor() or platform.machine())


class NvmlError(Exception):
    """Stands in for NVML's error."""


def nvml(processes: list[list[tuple[int, int | None]]], error: bool = False) -> Any:
    """A stand-in for NVML: for each GPU, the processes (id, bytes) that run on it."""

    def running(at: int) -> list[Any]:
        if error:
            raise NvmlError
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in processes[at]]

    return SimpleNamespace(
        NVMLError=NvmlError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(processes),
        nvmlDeviceGetHandleByIndex=lambda at: at,
        nvmlDeviceGetComputeRunningProcesses=running,
    )


@pytest.mark.parametrize(
    ("processes", "error", "used"),
    [
        ([[(os.getpid(), 3 * GB), (1, 5 * GB)], [(os.getpid(), GB)]], False, 4 * GB),
        ([[(1, 5 * GB)]], False, None),  # memory of another process
        ([[(os.getpid(), None)]], False, None),
        ([[(os.getpid(), GB)]], True, None),
    ],
)
def test_memory_of_this_process(
    processes: Any, error: bool, used: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(processes, error))
    monkeypatch.setattr("torch.cuda.max_memory_reserved", lambda: 2 * GB)
    assert device.own_memory() == {"process": used, "torch_peak": 2 * GB}


@pytest.fixture
def set_to(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The settings that are made on a device of 80 GB, recorded by stand-ins for RMM, cupy and torch."""
    settings: dict[str, Any] = {}
    mr = SimpleNamespace(
        available_device_memory=lambda: (70 * GB, 80 * GB),
        CudaAsyncMemoryResource=lambda *, release_threshold: ("pool", release_threshold),
        LimitingResourceAdaptor=lambda upstream, *, allocation_limit: (upstream, allocation_limit),
        set_current_device_resource=lambda pool: settings.update(rmm=pool),
    )
    cuda = SimpleNamespace(set_allocator=lambda allocator: settings.update(cupy=allocator))
    modules = {
        "rmm": SimpleNamespace(mr=mr, __spec__="here"),
        "rmm.allocators.cupy": SimpleNamespace(rmm_cupy_allocator="RMM's"),
        "cupy": SimpleNamespace(cuda=cuda),
    }
    monkeypatch.setattr(os, "environ", dict(os.environ))
    # Torch first: its import looks for modules that are replaced below.
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda i: SimpleNamespace(total_memory=80 * GB))
    monkeypatch.setattr(
        "torch.cuda.set_per_process_memory_fraction", lambda share: settings.update(torch=share)
    )
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(device, "_limit", None)
    device.pool.cache_clear()
    yield settings
    device.pool.cache_clear()


def test_a_process_has_one_pool(set_to: dict[str, Any]) -> None:
    assert device.pool() is device.pool()
    assert set_to == {"rmm": ("pool", 40 * GB), "cupy": "RMM's"}
    assert device.memory_limit() is None


def test_a_limit_applies_to_every_pool_and_to_spilling(set_to: dict[str, Any]) -> None:
    device.limit_memory(40 * GB)
    assert set_to == {"rmm": (("pool", 20 * GB), 40 * GB), "cupy": "RMM's", "torch": 0.5}
    assert device.pool() == set_to["rmm"]
    assert device.memory_limit() == 40 * GB
    assert os.environ["CUDF_SPILL_DEVICE_LIMIT"] == str(32 * GB)
    assert os.environ["CUDF_SPILL"] == "on"


def test_a_limit_must_be_set_before_the_pool_is_made(set_to: dict[str, Any]) -> None:
    device.pool()
    with pytest.raises(RuntimeError, match="before"):
        device.limit_memory(GB)

"""What a process asks of its GPU, by stand-ins for the libraries that answer."""

import json
import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from buzzer.engine import device

GB = 10**9


class NvmlError(Exception):
    """As NVML's."""


def nvml(processes: list[list[tuple[int, int | None]]], error: bool = False) -> Any:
    """GPUs with the processes (id, bytes) that run there."""

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
    ("processes", "error", "found"),
    [
        ([[(os.getpid(), 3 * GB), (1, 5 * GB)], [(os.getpid(), GB)]], False, 4 * GB),
        ([[(1, 5 * GB)]], False, None),  # another's memory is no proof
        ([[(os.getpid(), None)]], False, None),
        ([[(os.getpid(), GB)]], True, None),
    ],
)
def test_memory_of_this_very_process(
    processes: Any, error: bool, found: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(processes, error))
    monkeypatch.setattr("torch.cuda.max_memory_reserved", lambda: 2 * GB)
    assert device.own_memory() == {"process": found, "torch_peak": 2 * GB}


def test_a_budget_limits_every_pool_and_tells_where_to_spill(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: dict[str, Any] = {}
    mr = SimpleNamespace(
        CudaAsyncMemoryResource=lambda: "pool",
        LimitingResourceAdaptor=lambda upstream, *, allocation_limit: (upstream, allocation_limit),
        set_current_device_resource=lambda pool: set_to.update(rmm=pool),
    )
    cuda = SimpleNamespace(set_allocator=lambda allocator: set_to.update(cupy=allocator))
    modules = {
        "rmm": SimpleNamespace(mr=mr, __spec__="here"),
        "rmm.allocators.cupy": SimpleNamespace(rmm_cupy_allocator="RMM's"),
        "cupy": SimpleNamespace(cuda=cuda),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda i: SimpleNamespace(total_memory=80 * GB))
    monkeypatch.setattr(
        "torch.cuda.set_per_process_memory_fraction", lambda share: set_to.update(torch=share)
    )
    device.limit_memory(40 * GB)
    assert set_to == {"rmm": ("pool", 40 * GB), "cupy": "RMM's", "torch": 0.5}
    own = json.loads(os.environ["CUDF_POLARS__MEMORY_RESOURCE_CONFIG__OPTIONS"])
    assert own["allocation_limit"] == 40 * GB
    assert os.environ["RAPIDSMPF_SPILL_DEVICE_LIMIT"] == os.environ["CUDF_SPILL_DEVICE_LIMIT"] == str(32 * GB)
    assert os.environ["CUDF_SPILL"] == "on"

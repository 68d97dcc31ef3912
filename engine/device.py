"""What this machine has: the processor's name, and the GPUs as their driver tells them."""

import ctypes
import platform
from functools import cache
from pathlib import Path
from typing import Any


def cpu_name() -> str:
    """The processor's marketing name, or its architecture where no name is told."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cache_bytes() -> int:
    """Size of the last-level cache; 64 MiB where the system does not tell."""
    found = [64 << 20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text[:-1].isdigit() and text[-1] in "KM":
            found.append(int(text[:-1]) << (10 if text[-1] == "K" else 20))
    return max(found[1:], default=found[0])


@cache
def gpus() -> list[dict[str, Any]]:
    """Each GPU's name, memory in bytes and driver; empty without a driver. Does not create a CUDA context."""
    try:
        import pynvml
    except ImportError:
        return [{"name": "unknown (install nvidia-ml-py)"} for _ in range(_cuda_count())]
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    driver = pynvml.nvmlSystemGetDriverVersion()
    found = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle).total
        found.append({"name": pynvml.nvmlDeviceGetName(handle), "memory_bytes": memory, "driver": driver})
    return found


def _cuda_count() -> int:
    """Number of devices by the driver itself, for machines without NVML's bindings."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value

"""What this machine has: the processor's name, and the GPUs as their driver tells them."""

import ctypes
import importlib.util
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

RAPIDS_CUDA = (13, 0)  # the CUDA of the `gpu` extra's wheels
# https://docs.nvidia.com/cuda/cuda-driver-api, CUresult
CODES = {
    3: "not initialised",
    35: "driver too old for the library",
    100: "no device",
    101: "device asked for is not there",
    803: "driver and kernel module differ",
    804: "forward compatibility is not supported here",
}
_limit: int | None = None  # of GPU memory, in bytes
CPUINFO = Path("/proc/cpuinfo")
# A flag of CPUINFO and what it stands for, widest first.
SIMD = {
    "amx_tile": "AMX",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx2": "AVX2",
    "sve": "SVE",
    "asimd": "NEON",
}


def cpu_facts() -> dict[str, str]:
    """What Linux tells of the first processor; empty elsewhere."""
    try:
        text = CPUINFO.read_text().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def cpu_name() -> str:
    """The processor's marketing name, or its architecture where no name is told."""
    return cpu_facts().get("model name") or platform.processor() or platform.machine()


def simd() -> str:
    """The widest vector instructions; "" where the system does not tell. A cloud's processors of one name differ in them."""
    facts = cpu_facts()
    flags = {*facts.get("flags", facts.get("Features", "")).split()}
    return next((told for flag, told in SIMD.items() if flag in flags), "")


def saturates() -> bool:
    """Whether ONNX Runtime and OpenVINO add pairs of INT8 products in 16 bits on this processor, where large ones are cut off: x86 without
    VNNI (ONNX Runtime, "Quantize ONNX models": reduce_range)."""
    return simd() in ("AVX-512", "AVX2")


def multiplies_bf16() -> bool:
    """Whether this processor multiplies BF16; others emulate it, at a fraction of FP32's speed."""
    return simd() in ("AVX-512 BF16", "AMX")


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


def cuda_problem(least: tuple[int, int] = (0, 0)) -> str:
    """Why CUDA cannot be used here, as the driver itself tells, or ""; `least` is the CUDA version that it must speak. Makes no context."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1 is not there)"
    code, count, version = cuda.cuInit(0), ctypes.c_int(0), ctypes.c_int(0)
    if code:
        return f"the driver does not start: {CODES.get(code, 'CUDA error')} ({code})"
    cuda.cuDriverGetVersion(ctypes.byref(version))
    speaks = (version.value // 1000, version.value % 1000 // 10)
    if speaks < least:
        return (
            f"the driver is too old: it speaks CUDA {speaks[0]}.{speaks[1]}, {least[0]}.{least[1]} is needed"
        )
    cuda.cuDeviceGetCount(ctypes.byref(count))
    return "" if count.value else "the driver shows no device"


def limit_memory(limit: int) -> None:
    """Hold this process to so many bytes of GPU memory: `pool`, torch's cache, and where cuDF begins to spill. XGBoost and CUDA's own
    context allocate beside them; the harness watches the sum by NVML."""
    global _limit
    if pool.cache_info().currsize:
        raise RuntimeError("the limit must be set before the pool is made")
    import torch

    torch.cuda.set_per_process_memory_fraction(
        min(limit / torch.cuda.get_device_properties(0).total_memory, 1.0)
    )
    _limit = limit
    os.environ |= {"CUDF_SPILL": "on", "CUDF_SPILL_DEVICE_LIMIT": str(limit * 4 // 5)}
    if importlib.util.find_spec("rmm") is not None:
        pool()


def memory_limit() -> int | None:
    """Bytes that `limit_memory` allows; None without one."""
    return _limit


@cache
def pool() -> Any:
    """This process's only RMM memory resource, for cuDF, cudf-polars and cupy: the driver's pool, which keeps freed memory up to half of the
    device or of the limit, for torch and XGBoost allocate beside it."""
    import cupy
    import rmm
    from rmm.allocators.cupy import rmm_cupy_allocator

    _, total = rmm.mr.available_device_memory()
    held = rmm.mr.CudaAsyncMemoryResource(release_threshold=(_limit or total) // 2)
    made = rmm.mr.LimitingResourceAdaptor(held, allocation_limit=_limit) if _limit else held
    rmm.mr.set_current_device_resource(made)
    cupy.cuda.set_allocator(rmm_cupy_allocator)
    return made


def own_memory() -> dict[str, int | None]:
    """GPU memory of this very process in bytes: `process` by NVML, None where it knows the process by another id, as in some
    containers; `torch_peak` by torch's own count."""
    import torch

    return {"process": _by_nvml(os.getpid()), "torch_peak": torch.cuda.max_memory_reserved()}


def nvml() -> Any:
    """NVML's bindings, started; None without them or without a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001  not installed, no driver, no permission: all mean no counter
        return None
    return pynvml


def _by_nvml(pid: int) -> int | None:
    library = nvml()
    if library is None:
        return None
    try:
        handles = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
        running = [p for handle in handles for p in library.nvmlDeviceGetComputeRunningProcesses(handle)]
    except library.NVMLError:
        return None
    return sum(p.usedGpuMemory or 0 for p in running if p.pid == pid) or None


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

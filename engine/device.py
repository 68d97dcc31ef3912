"""Facts about this machine's processor and GPUs, and this process's GPU memory."""

import ctypes
import importlib.util
import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from buzzer.errors import UnsupportedError

RAPIDS_CUDA = (13, 0)  # CUDA version of the `gpu` extra's wheels
# https://docs.nvidia.com/cuda/cuda-driver-api, CUresult
CODES = {
    3: "not initialised",
    35: "driver too old for the library",
    100: "no device",
    101: "no such device",
    803: "driver and kernel module differ",
    804: "forward compatibility is not supported here",
}
SEE_ENV = "`buzzer env` shows what this machine has"
_limit: int | None = None  # of GPU memory, in bytes
CPUINFO = Path("/proc/cpuinfo")
# CPU flags in CPUINFO -> names of the instruction sets, widest vectors first.
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


@dataclass(frozen=True)
class Gpu:
    """One GPU. Unknown memory is None; an unknown driver version is ""."""

    name: str
    memory_bytes: int | None = None
    driver: str = ""


def cpu_facts() -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo, name -> value; empty if there is no such file."""
    try:
        text = CPUINFO.read_text().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def cpu_name() -> str:
    """The processor's marketing name, or its architecture if the system gives no name."""
    return cpu_facts().get("model name") or platform.processor() or platform.machine()


def simd() -> str:
    """The widest vector instructions, "" if unknown. Cloud processors of the same name may support different ones."""
    facts = cpu_facts()
    flags = {*facts.get("flags", facts.get("Features", "")).split()}
    return next((name for flag, name in SIMD.items() if flag in flags), "")


def saturates() -> bool:
    """Whether INT8 sums of ONNX Runtime and OpenVINO can saturate on this processor.

    True for x86 without VNNI: pairs of INT8 products are added in 16 bits (ONNX Runtime, "Quantize ONNX models": reduce_range).
    """
    return simd() in ("AVX-512", "AVX2")


def has_avx512() -> bool:
    """Whether this processor has AVX-512, as those with AMX do."""
    return simd() in ("AVX-512", "AVX-512 VNNI", "AVX-512 BF16", "AMX")


def multiplies_bf16() -> bool:
    """Whether this processor has BF16 instructions. Without them BF16 is emulated, much slower than FP32."""
    return simd() in ("AVX-512 BF16", "AMX")


def cache_bytes() -> int:
    """Size of the last-level cache; 64 MiB if unknown."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text[:-1].isdigit() and text[-1] in "KM":
            sizes.append(int(text[:-1]) << (10 if text[-1] == "K" else 20))
    return max(sizes, default=64 << 20)


@cache
def gpus() -> list[Gpu]:
    """The machine's GPUs; empty without a driver. Does not create a CUDA context."""
    try:
        import pynvml
    except ImportError:
        return [Gpu("unknown (install nvidia-ml-py)") for _ in range(_cuda_count())]
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    driver = pynvml.nvmlSystemGetDriverVersion()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    return [
        Gpu(pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetMemoryInfo(handle).total, driver)
        for handle in handles
    ]


def gpu_memory() -> list[int]:
    """Memory in bytes of each GPU for which it is known."""
    return [gpu.memory_bytes for gpu in gpus() if gpu.memory_bytes is not None]


def require_cuda() -> None:
    """Raises UnsupportedError if there is no CUDA device, according to the driver. Imports nothing."""
    if why := cuda_problem():
        raise UnsupportedError(f"no CUDA device here: {why}", SEE_ENV)


def no_cuda() -> str:
    """The error message for a machine where torch sees no CUDA device, with the driver's reason if there is one."""
    import torch

    return f"no CUDA device here: {cuda_problem() or f'torch {torch.__version__} does not see it'}"


def require_torch_cuda() -> None:
    """Raises UnsupportedError if torch sees no CUDA device."""
    import torch

    if not torch.cuda.is_available():
        raise UnsupportedError(no_cuda(), SEE_ENV)


def cuda_problem(least: tuple[int, int] = (0, 0)) -> str:
    """Why CUDA cannot be used here, according to the driver; "" if it can. Does not create a CUDA context.

    least: the CUDA version that the driver must support, (major, minor).
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1 is missing)"
    code, count, version = cuda.cuInit(0), ctypes.c_int(0), ctypes.c_int(0)
    if code:
        return f"the driver failed to start: {CODES.get(code, 'CUDA error')} ({code})"
    cuda.cuDriverGetVersion(ctypes.byref(version))
    major, minor = version.value // 1000, version.value % 1000 // 10
    if (major, minor) < least:
        return f"the driver is too old: it supports CUDA {major}.{minor}, but {least[0]}.{least[1]} is needed"
    cuda.cuDeviceGetCount(ctypes.byref(count))
    return "" if count.value else "the driver reports no device"


def limit_memory(limit: int) -> None:
    """Limit this process's GPU memory in bytes: `pool`, torch's cache, and the size above which cuDF spills.

    XGBoost and the CUDA context allocate memory outside these limits; the harness reads the total from NVML. Raises RuntimeError
    if the pool exists already.
    """
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
    """The limit in bytes that `limit_memory` set; None without one."""
    return _limit


@cache
def pool() -> Any:
    """The RMM memory resource that cuDF, cudf-polars and cupy share in this process.

    It is the driver's pool. It keeps at most half of the device's memory, or of the limit, when memory is freed, because torch and
    XGBoost allocate outside of it.
    """
    import cupy
    import rmm
    from rmm.allocators.cupy import rmm_cupy_allocator

    _, total = rmm.mr.available_device_memory()
    resource: Any = rmm.mr.CudaAsyncMemoryResource(release_threshold=(_limit or total) // 2)
    if _limit:
        resource = rmm.mr.LimitingResourceAdaptor(resource, allocation_limit=_limit)
    rmm.mr.set_current_device_resource(resource)
    cupy.cuda.set_allocator(rmm_cupy_allocator)
    return resource


def own_memory() -> dict[str, int | None]:
    """GPU memory of this process in bytes: `process`, as NVML reports it, and `torch_peak`, the most that torch has reserved.

    `process` is None if NVML lists the process under another id, as in some containers.
    """
    import torch

    return {"process": _by_nvml(os.getpid()), "torch_peak": torch.cuda.max_memory_reserved()}


def nvml() -> Any:
    """NVML's Python module, initialised; None if it is not installed or there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001  not installed, no driver, or no permission
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
    """The number of devices that the driver reports, for machines without NVML's Python module."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value

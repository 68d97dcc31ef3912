"""Classifies exceptions of GPU libraries.

CUDA, RMM, cuDF, cupy, torch and XGBoost share no error type, so exceptions are recognised by their type name and message.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from buzzer.engine.device import SEE_ENV

MEMORY, LACKING, REFUSED = "memory", "lacking", "refused"


@dataclass(frozen=True)
class Fault:
    """The kind of a GPU error, and a hint for the user. Kinds: MEMORY (out of device memory), LACKING (no usable device), REFUSED (the
    library cannot do this on a GPU)."""

    kind: str
    hint: str


# Fault -> patterns that are searched in "TypeName: message". The first fault with a match is the result.
RULES: dict[Fault, list[str]] = {
    Fault(
        MEMORY,
        "use a smaller --scale, piece_rows or batch, or several GPUs (--gpus); nvidia-smi shows which processes use the GPU",
    ): [
        r"^OutOfMemoryError: ",  # torch, cupy
        r"out_of_memory",  # RMM: std::bad_alloc: out_of_memory: CUDA error (or RMM failure) at ...
        r"bad_alloc.*(CUDA|RMM)",
        r"CUDA out of memory",
        r"cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY|_STATUS_ALLOC_FAILED",
        r"Maximum pool size exceeded|Exceeded memory limit",
        r"reservation_error|failed to reserve memory|memory reservation failed",  # rapidsmpf
        r"^XGBoostError: .*(out of memory|[Mm]emory allocation error)",
    ],
    Fault(LACKING, "the NVIDIA driver is too old for these libraries: install a newer one"): [
        r"cudaErrorInsufficientDriver|driver version is insufficient|driver on your system is too old",
        r"(cudaError|CUDA_ERROR_)S(ystemDriverMismatch|YSTEM_DRIVER_MISMATCH)",
        r"unsupported toolchain|cudaErrorUnsupportedPtxVersion",
    ],
    Fault(LACKING, SEE_ENV): [
        r"Found no NVIDIA driver|Torch not compiled with CUDA|No CUDA GPUs are available",
        r"cudaErrorNoDevice|no CUDA-capable device|CUDA_ERROR_NO_DEVICE",
        r"NVMLError_(LibraryNotFound|DriverNotLoaded)|libcuda\.so\S*: cannot open",
        r"is an NVIDIA driver library",  # cuda.pathfinder
    ],
    Fault(LACKING, "another process uses the GPU exclusively: nvidia-smi shows which"): [
        r"cudaErrorDevicesUnavailable|CUDA_ERROR_DEVICE_UNAVAILABLE|busy or unavailable",
    ],
    (UNABLE := Fault(REFUSED, "use an engine that runs on the CPU; there is no automatic fallback")): [
        r"Query execution with GPU not possible|'cuda' conversion failed",  # cudf-polars, raise_on_fail
        r"^(MixedTypeError|UnsupportedCUDAError): ",
    ],
}


def chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, the members of its groups (at any depth), and the causes of all of these."""
    waiting, seen = [error], set[int]()
    while waiting:
        link = waiting.pop()
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        grouped = link.exceptions if isinstance(link, BaseExceptionGroup) else ()
        waiting += [*filter(None, [link.__cause__ or link.__context__]), *reversed(grouped)]


def classify(error: BaseException) -> Fault | None:
    """The fault that an exception or one of its causes matches; None if it is not a GPU error."""
    for link in chain(error):
        text = f"{type(link).__name__}: {link}"
        for fault, patterns in RULES.items():
            if any(re.search(pattern, text, re.DOTALL) for pattern in patterns):
                return fault
        if isinstance(link, NotImplementedError) and from_cudf(link):
            return UNABLE
    return None


def from_cudf(error: BaseException) -> bool:
    """Whether the innermost frame of the traceback belongs to cuDF."""
    trace, module = error.__traceback__, ""
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
    return module.partition(".")[0] in ("cudf", "pylibcudf", "cudf_polars")

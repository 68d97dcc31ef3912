"""Exceptions of GPU libraries, by type name and message, and the outcome that each gives a run."""

import types
from typing import Any

import polars as pl
import pytest

from buzzer.engine import device, faults
from buzzer.engine.frames import resident
from buzzer.engine.frames.lazy import Lazy
from buzzer.errors import DataError, UnsupportedError
from buzzer.suite.run import worker


def gpu_error(name: str, base: type[Exception], message: str) -> Exception:
    """An exception of a type that only a GPU library defines."""
    kind: Any = type(name, (base,), {})
    return kind(message)


RMM = "std::bad_alloc: out_of_memory: CUDA error (failed to allocate 8589934592 bytes) at: rmm/mr/cuda_async.hpp:85"
LIMIT = "std::bad_alloc: out_of_memory: RMM failure at:rmm/mr/limiting_resource_adaptor.hpp:143: Exceeded memory limit"
BUSY = "cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable"
OLD = "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver"
REFUSES = "'cuda' conversion failed: NotImplementedError: Query execution with GPU not possible: unsupported operations."

RESERVED = "std::bad_alloc: reservation_error: failed to reserve memory"


def grouped(error: Exception) -> Exception:
    """An actor's exception as rapidsmpf raises it: inside nested task groups."""
    inner = ExceptionGroup("unhandled errors in a TaskGroup (1 sub-exception)", [error])
    return ExceptionGroup(
        "unhandled errors in a TaskGroup (2 sub-exceptions)", [ValueError("cancelled"), inner]
    )


FAULTS = {
    "RMM in features": (MemoryError(RMM), "device-oom"),
    "RMM at the budget's limit": (MemoryError(LIMIT), "device-oom"),
    "RMM in an actor": (grouped(MemoryError(RMM)), "device-oom"),
    "rapidsmpf in an actor": (grouped(MemoryError(RESERVED)), "device-oom"),
    "rapidsmpf, after a wait": (RuntimeError("memory reservation failed"), "device-oom"),
    "cudf-polars with its hint": (
        MemoryError(f"Try lowering `target_partition_size`\nOriginal error:\n{RMM}"),
        "device-oom",
    ),
    "GPU taken, in an actor": (grouped(RuntimeError(BUSY)), "unsupported"),
    "a bug in an actor": (grouped(RuntimeError("something broke")), "error"),
    "cudf-polars in features": (gpu_error("ComputeError", Exception, f"MemoryError: {RMM}"), "device-oom"),
    "torch in fit": (
        gpu_error("OutOfMemoryError", RuntimeError, "CUDA out of memory. Tried to allocate 2 GiB"),
        "device-oom",
    ),
    "cupy in transfer": (
        gpu_error("OutOfMemoryError", MemoryError, "Out of memory allocating 4,096 bytes"),
        "device-oom",
    ),
    "XGBoost in fit": (
        gpu_error("XGBoostError", ValueError, "[12:00:00] Memory allocation error on worker 0"),
        "device-oom",
    ),
    "cuBLAS in predict": (
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        "device-oom",
    ),
    "no driver, torch": (RuntimeError("Found no NVIDIA driver on your system."), "unsupported"),
    "no driver, NVML": (
        gpu_error("NVMLError_LibraryNotFound", Exception, "NVML Shared Library Not Found"),
        "unsupported",
    ),
    "no device, cupy": (
        gpu_error("CUDARuntimeError", RuntimeError, "cudaErrorNoDevice: no CUDA-capable device is detected"),
        "unsupported",
    ),
    "driver too old, torch": (RuntimeError(OLD), "unsupported"),
    "driver too old, cupy": (
        gpu_error(
            "CUDARuntimeError",
            RuntimeError,
            "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version",
        ),
        "unsupported",
    ),
    "GPU taken": (gpu_error("CUDARuntimeError", RuntimeError, BUSY), "unsupported"),
    "GPU taken, torch": (
        gpu_error(
            "AcceleratorError", RuntimeError, "CUDA error: CUDA-capable device(s) is/are busy or unavailable"
        ),
        "unsupported",
    ),
    "cudf-polars refuses": (gpu_error("ComputeError", Exception, REFUSES), "unsupported"),
    "host memory": (MemoryError("Unable to allocate 8 GiB for an array"), "host-oom"),
    "our own gap": (NotImplementedError("no such model yet"), "error"),
    "a bug": (RuntimeError("something broke"), "error"),
    "a bug on the GPU": (RuntimeError("CUDA error: an illegal memory access was encountered"), "error"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_has_its_outcome(name: str) -> None:
    error, outcome = FAULTS[name]
    failed = worker.failure(error)
    assert failed.outcome == outcome
    assert any(str(link) in failed.message for link in faults.chain(error))
    assert bool(failed.hint) == (outcome in ("device-oom", "unsupported"))


def test_a_fault_is_recognised_by_its_cause() -> None:
    try:
        try:
            raise MemoryError(RMM)
        except MemoryError as error:
            raise ValueError("piece 3 failed") from error
    except ValueError as error:
        assert worker.failure(error).outcome == "device-oom"


def refuses() -> None:
    raise NotImplementedError("kwargs are not supported")


def test_an_operator_that_cudf_refuses_is_a_fault_but_a_gap_of_ours_is_not() -> None:
    inside_cudf = types.FunctionType(refuses.__code__, {"__name__": "cudf.core.groupby"})
    for function, fault in ((inside_cudf, faults.UNABLE), (refuses, None)):
        with pytest.raises(NotImplementedError) as caught:
            function()
        assert faults.classify(caught.value) == fault


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "in an actor"])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (pl.exceptions.ComputeError(REFUSES), None),
        (pl.exceptions.ComputeError("could not parse `x`"), DataError),
        (pl.exceptions.InvalidOperationError("conversion from `str` failed."), DataError),
        (MemoryError(RMM), None),
        (RuntimeError("something broke"), None),
    ],
)
@pytest.mark.parametrize("ask", ["collect", "keep"])
def test_the_lazy_engine_separates_faults_from_bad_data(
    error: Exception, kind: type[Exception] | None, wrapped: bool, ask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised = grouped(error) if wrapped else error

    def fail(*given: Any, **options: Any) -> None:
        raise raised

    monkeypatch.setattr(resident, "engine", lambda: "the engine")
    monkeypatch.setattr(resident, "run", fail)
    monkeypatch.setattr(pl.LazyFrame, "collect", fail)
    plan = pl.LazyFrame({"a": [1]}).with_columns(b=pl.col("a") + 1)
    with pytest.raises(kind or type(raised)) as caught:
        getattr(Lazy("gpu"), ask)(plan)
    assert (caught.value is raised) == (kind is None)
    if kind is not None:
        assert str(error) in str(caught.value)


class Cuda:
    """A stand-in for the driver's library: the result of cuInit, the CUDA version, and the number of devices."""

    def __init__(self, init: int = 0, version: int = 13000, devices: int = 1) -> None:
        self.init, self.version, self.devices = init, version, devices

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDriverGetVersion(self, out: Any) -> int:
        out._obj.value = self.version
        return 0

    def cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = self.devices
        return 0


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (Cuda(), ""),
        (Cuda(version=12040), "too old: it supports CUDA 12.4, but 13.0 is needed"),
        (Cuda(init=100), "no device (100)"),
        (Cuda(init=803), "driver and kernel module differ (803)"),
        (Cuda(devices=0), "the driver reports no device"),
        (None, "no NVIDIA driver"),
    ],
)
def test_the_driver_gives_the_reason(
    driver: Cuda | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def library(name: str) -> Cuda:
        if driver is None:
            raise OSError("libcuda.so.1: cannot open shared object file")
        return driver

    monkeypatch.setattr("ctypes.CDLL", library)
    problem = device.cuda_problem(device.RAPIDS_CUDA)
    assert message in problem
    assert bool(message) == bool(problem)
    if problem:
        from buzzer.engine import frames

        with pytest.raises(UnsupportedError, match="needs a CUDA device"):
            frames.require_device("cudf")

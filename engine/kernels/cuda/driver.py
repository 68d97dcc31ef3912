"""Loads the cubin of `gemm.cu` and starts its kernels through the CUDA driver."""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

from torch import Tensor

from buzzer.engine.kernels.cuda.build import cubin
from buzzer.engine.kernels.cuda.layout import CHUNK, MOST_SHARED, ROWS
from buzzer.errors import UnsupportedError

THREADS = 256
# Names and values of cuda.h.
CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT = 9
CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION = 4
CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE = 5
CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6
CU_CLUSTER_SCHEDULING_POLICY_SPREAD = 1
CU_TENSOR_MAP_DATA_TYPE_UINT8 = 0
CU_TENSOR_MAP_INTERLEAVE_NONE = 0
CU_TENSOR_MAP_SWIZZLE_128B = 3
CU_TENSOR_MAP_L2_PROMOTION_L2_128B = 2
CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0
MAP_BYTES, MAP_ALIGNMENT = 128, 64


class Driver(Protocol):
    """Starts kernels by name."""

    def tile_map(self, matrix: Tensor) -> Any:
        """The kernels' description of the bytes of a matrix [128, depth], from which they copy tiles."""
        ...

    def launch(self, kernel: str, blocks: int, cluster: int, shared: int, parameters: Sequence[Any]) -> None:
        """Start a kernel on the current stream. parameters: ctypes objects, the values of the kernel's parameters."""
        ...


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute: the identifier, and 64 bytes of which at most three integers are used."""

    _fields_ = (("id", ctypes.c_int), ("padding", ctypes.c_int), ("value", ctypes.c_uint * 16))


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("count", ctypes.c_uint),
    )


class Cuda:
    """The driver of NVIDIA. Its calls use the context of torch."""

    def __init__(self) -> None:
        import torch

        torch.cuda.init()
        torch.zeros(1, device="cuda")  # makes torch's context current
        self._library = ctypes.CDLL("libcuda.so.1")
        self._module = ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(self._module), ctypes.c_char_p(cubin()))
        self._functions: dict[str, ctypes.c_void_p] = {}

    def tile_map(self, matrix: Tensor) -> Any:
        """A CUtensorMap of tiles of 128 rows and 128 bytes with the 128-byte swizzle."""
        import torch

        rows, depth = matrix.view(torch.uint8).shape
        storage = (ctypes.c_uint8 * (MAP_BYTES + MAP_ALIGNMENT))()
        at = -ctypes.addressof(storage) % MAP_ALIGNMENT
        described = (ctypes.c_uint8 * MAP_BYTES).from_buffer(storage, at)  # keeps `storage` alive
        self._call(
            "cuTensorMapEncodeTiled", described, CU_TENSOR_MAP_DATA_TYPE_UINT8, ctypes.c_uint(2),
            ctypes.c_void_p(matrix.data_ptr()), (ctypes.c_uint64 * 2)(depth, rows), (ctypes.c_uint64 * 1)(depth),
            (ctypes.c_uint32 * 2)(CHUNK, ROWS), (ctypes.c_uint32 * 2)(1, 1), CU_TENSOR_MAP_INTERLEAVE_NONE,
            CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )  # fmt: skip
        return described

    def launch(self, kernel: str, blocks: int, cluster: int, shared: int, parameters: Sequence[Any]) -> None:
        """Start a kernel in clusters, as a programmatic dependent launch. The blocks of a cluster are spread over multiprocessors: two
        or more of them fit in one, and would then share its copies and its tensor cores while others are idle."""
        import torch

        attributes = (LaunchAttribute * 3)()
        attributes[0].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        attributes[0].value[:3] = (cluster, 1, 1)
        attributes[1].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE
        attributes[1].value[0] = CU_CLUSTER_SCHEDULING_POLICY_SPREAD
        attributes[2].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attributes[2].value[0] = 1
        config = LaunchConfig(
            (blocks, 1, 1), (THREADS, 1, 1), shared, torch.cuda.current_stream().cuda_stream
        )
        config.attributes, config.count = attributes, len(attributes)
        pointers = (ctypes.c_void_p * len(parameters))(*(ctypes.addressof(p) for p in parameters))
        self._call("cuLaunchKernelEx", ctypes.byref(config), self._function(kernel), pointers, None)

    def _function(self, name: str) -> ctypes.c_void_p:
        if name not in self._functions:
            function = ctypes.c_void_p()
            self._call("cuModuleGetFunction", ctypes.byref(function), self._module, name.encode())
            # Kernels with different carve-outs cannot overlap, so all request all of L1 as shared memory.
            for attribute, value in (
                (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, MOST_SHARED),
                (CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100),
            ):
                self._call("cuFuncSetAttribute", function, attribute, value)
            self._functions[name] = function
        return self._functions[name]

    def _call(self, name: str, *arguments: Any) -> None:
        """Call the driver. Raises RuntimeError with the driver's name of the error."""
        if code := getattr(self._library, name)(*arguments):
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(code, ctypes.byref(text))
            raise RuntimeError(f"{name}: {(text.value or b'error').decode()} ({code})")


@cache
def active() -> Driver:
    """This machine's driver. Raises UnsupportedError without a GPU of compute capability 9.0, for which the cubin is built."""
    import torch

    from buzzer.engine.device import require_torch_cuda

    require_torch_cuda()
    if torch.cuda.get_device_capability() != (9, 0):
        major, minor = torch.cuda.get_device_capability()
        raise UnsupportedError(
            f"the CUDA kernels need compute capability 9.0 (H100, H200), not {major}.{minor}"
        )
    return Cuda()

"""Compiles `gemm.cu` for a CPU, and runs its launches there in place of the CUDA driver."""

import ctypes
import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, uint8

from buzzer.engine.kernels.cuda.build import FOLDER

HERE = Path(__file__).parent
OPTIONS = ("-std=c++17", "-pthread", "-Wall", "-Wextra", "-Werror", f'-DGEMM="{FOLDER / "gemm.cu"}"')


def compile_host(out: Path, *options: str, source: Path = HERE / "host.cpp") -> Path:
    """Compile host.cpp with g++. Skips the test without g++."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    done = subprocess.run(
        ["g++", *OPTIONS, *options, f"-I{HERE}", str(source), "-o", str(out)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out


class TileMap(ctypes.Structure):
    """A matrix of bytes, as in host.hpp."""

    _fields_ = (("at", ctypes.c_void_p), ("pitch", ctypes.c_int64))


class Host:
    """Stands for `driver.Cuda`."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def tile_map(self, matrix: Tensor) -> Any:
        assert len(matrix) == 128
        return TileMap(matrix.data_ptr(), matrix.shape[1] * matrix.itemsize)

    def sum_bits(self, bits: int) -> None:
        """The bits of FP8 sums of all later launches; 24 are those of floats."""
        self._library.sum_bits(bits)

    def launch(self, kernel: str, blocks: int, cluster: int, shared: int, parameters: Sequence[Any]) -> None:
        pointers = (ctypes.c_void_p * len(parameters))(*(ctypes.addressof(p) for p in parameters))
        assert self._library.launch(kernel.encode(), blocks, cluster, shared, pointers) == 0


class Recorded:
    """Stands for `driver.Cuda`. Runs each launch by the program of host.cpp, in a process of its own."""

    def __init__(self, program: Path, tensors: Sequence[Tensor | None]) -> None:
        """tensors: all that the kernels read or write."""
        self.program = program
        self.tensors = [tensor for tensor in tensors if tensor is not None]
        self.done: subprocess.CompletedProcess[str] | None = None

    tile_map = Host.tile_map

    def launch(self, kernel: str, blocks: int, cluster: int, shared: int, parameters: Sequence[Any]) -> None:
        arrays = [tensor.view(uint8).numpy() for tensor in self.tensors]
        parts = [kernel.encode().ljust(32, b"\0"), struct.pack("4i", blocks, cluster, shared, len(arrays))]
        parts += [bytes(parameter) for parameter in parameters]
        for array in arrays:
            parts += [struct.pack("2Q", array.ctypes.data, array.nbytes), array.tobytes()]
        file = self.program.with_suffix(".launch")
        file.write_bytes(b"".join(parts))
        environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}
        command = [str(self.program), str(file)]
        self.done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=300, env=environment
        )
        after, at = file.read_bytes(), sum(map(len, parts[:4]))
        for array in arrays:
            array.reshape(-1)[:] = np.frombuffer(after, np.uint8, array.nbytes, at + 16)
            at += 16 + array.nbytes

"""Compiles `gemm.cu` for a CPU, and runs its launches there in place of the CUDA driver."""

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

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

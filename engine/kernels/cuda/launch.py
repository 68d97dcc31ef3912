"""Launches of the kernels of `gemm.cu`: `project`, `gelu` and `residual`."""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from buzzer.engine.kernels.cuda import driver
from buzzer.engine.kernels.cuda.build import kept
from buzzer.engine.kernels.cuda.layout import COLUMNS, KINDS, ROWS, VECTORS, Cut
from buzzer.engine.kernels.facts import CodeFacts, LaunchFacts

WARPS = 8
STAMPS = 8  # times that a block takes: `Stamp` in gemm.cu


class Arguments(ctypes.Structure):
    """The structure of the same name in `gemm.cu`."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("weights", "vectors", "norms", "residual", "out", "eight", "out_norms", "stamps")
        ),
        ("eps", ctypes.c_float),
        ("tile_weight", ctypes.c_float),
        ("zero", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("tiles", "columns", "chunks", "share")),
    )


@dataclass(frozen=True)
class Norms:
    """The norms of rows: for each tile of 64 columns, the mean and the sum of squared deviations. values: float32 [tiles, 128, 2]."""

    values: Tensor
    eps: float


@dataclass(frozen=True)
class TiledWeights:
    """The weights of a product. values: from `layout.tiled`. vectors: float32 [6, columns], see `Vector` in gemm.cu."""

    values: Tensor
    vectors: Tensor

    @property
    def columns(self) -> int:
        """Output columns."""
        return self.vectors.shape[1]

    @property
    def depth(self) -> int:
        """Depth of the product, in bytes of a row."""
        return self.values.numel() // self.columns


@dataclass(frozen=True)
class CudaLaunch:
    """A kernel with its arguments; call it to start the kernel. The same interface as `kernels.jit.Launch`.

    activations: E4M3, INT8 or float16 [128, depth].  norms: of the rows that are normed: the inputs, or for `residual` the residual.
    residual: float16 [128, columns].  out: float16 [128, columns].  eight: E4M3 or INT8 [128, columns].
    zero: the zero point of `eight`.  out_norms: float32 [tiles, 128, 2].
    stamps: int32 [blocks, STAMPS + 1, 2], to which each block writes its times; None: no times are taken.
    """

    name: str
    epilogue: str
    activations: Tensor
    weights: TiledWeights
    cut: Cut
    norms: Norms
    residual: Tensor | None = None
    out: Tensor | None = None
    eight: Tensor | None = None
    out_norms: Tensor | None = None
    zero: int = 0
    stamps: Tensor | None = None
    stages: int = 1
    pdl: bool = True
    constants: Mapping[str, object] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns, depth = self.weights.columns, self.weights.depth // self.activations.itemsize
        shapes = {
            "activations": (self.activations, (ROWS, depth)),
            "vectors": (self.weights.vectors, (VECTORS, columns)),
            "residual": (self.residual, (ROWS, columns)),
            "out": (self.out, (ROWS, columns)),
            "eight": (self.eight, (ROWS, columns)),
            "out_norms": (self.out_norms, (columns // COLUMNS, ROWS, 2)),
            "norms": (self.norms.values, (len(self.norms.values), ROWS, 2)),
            "stamps": (self.stamps, (*self.grid, STAMPS + 1, 2)),
        }
        for name, (tensor, shape) in shapes.items():
            if tensor is not None and (tuple(tensor.shape) != shape or not tensor.is_contiguous()):
                raise ValueError(f"{self.name}: {name} is {tuple(tensor.shape)} and not a contiguous {shape}")

    @property
    def kernel(self) -> str:
        """The name in the cubin."""
        return f"{self.epilogue}_{KINDS[self.activations.dtype].name}_{self.cut.split}"

    @property
    def grid(self) -> tuple[int]:
        """Blocks."""
        return (self.cut.blocks(self.weights.columns),)

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block."""
        return self.cut.shared(self.weights.depth)

    @property
    def constant_bytes(self) -> int:
        """Bytes of weights and vectors."""
        return sum(t.numel() * t.element_size() for t in (self.weights.values, self.weights.vectors))

    @property
    def moved_bytes(self) -> int:
        """Bytes of activations that are read and written."""
        moved = (self.activations, self.norms.values, self.residual, self.out, self.eight, self.out_norms)
        return sum(t.numel() * t.element_size() for t in moved if t is not None)

    @property
    def flops(self) -> int:
        """A multiply-add counts as two."""
        return 2 * self.activations.numel() * self.weights.columns

    def facts(self) -> LaunchFacts:
        """The kernel's launch options and work, for the command line."""
        return LaunchFacts(
            kernel=self.name,
            grid=self.grid,
            warps=WARPS,
            stages=self.cut.chunks(self.weights.depth),
            rows=ROWS,
            columns=COLUMNS,
            split=self.cut.split,
            constant_bytes=self.constant_bytes,
            moved_bytes=self.moved_bytes,
            flops=self.flops,
        )

    def code(self) -> CodeFacts:
        """Facts about the kernel in the kept cubin."""
        kernel = kept().kernels[self.kernel]
        return CodeFacts(kernel.registers, kernel.stack, self.shared, "wgmma")

    def __call__(self) -> None:
        """Start the kernel on the current stream. Raises UnsupportedError on a machine that cannot run it."""
        if self.activations.device.type == "meta":
            return  # the cubin is compiled already
        cluster = self.cut.split * self.cut.share
        driver.active().launch(self.kernel, self.grid[0], cluster, self.shared, self._parameters)

    @cached_property
    def _parameters(self) -> tuple[Any, Arguments]:
        def at(tensor: Tensor | None) -> int | None:
            return None if tensor is None else tensor.data_ptr()

        tiles = len(self.norms.values)
        arguments = Arguments(
            *(at(t) for t in (self.weights.values, self.weights.vectors, self.norms.values)),
            *(at(t) for t in (self.residual, self.out, self.eight, self.out_norms, self.stamps)),
            self.norms.eps, 1 / tiles, self.zero, tiles,
            self.weights.columns, self.cut.chunks(self.weights.depth), self.cut.share,
        )  # fmt: skip
        return driver.active().tile_map(self.activations), arguments


def project(
    name: str, activations: Tensor, weights: TiledWeights, cut: Cut, norms: Norms, out: Tensor
) -> CudaLaunch:
    """The launch of out = weights @ norm(activations) + bias, as half. Norms in INT8 must be those of normed rows."""
    return CudaLaunch(name, "project", activations, weights, cut, norms, out=out)


def gelu(
    name: str,
    activations: Tensor,
    weights: TiledWeights,
    cut: Cut,
    norms: Norms,
    out: Tensor,
    zero: int = 0,
) -> CudaLaunch:
    """The launch of out = gelu(weights @ norm(activations) + bias): as half if the activations are half, else in their type after
    `* factor + zero`."""
    if activations.dtype == torch.float16:
        return CudaLaunch(name, "gelu", activations, weights, cut, norms, out=out)
    return CudaLaunch(name, "gelu", activations, weights, cut, norms, eight=out, zero=zero)


def residual(
    name: str,
    activations: Tensor,
    weights: TiledWeights,
    cut: Cut,
    residual: Tensor,
    norms: Norms,
    out: Tensor,
    eight: Tensor | None = None,
    out_norms: Tensor | None = None,
) -> CudaLaunch:
    """The launch of out = weights @ activations + bias + norm(residual), as half; in FP8, eight = E4M3(out * factor); and, not in
    INT8, the norms of out.

    norms: of the residual.
    """
    dtype = activations.dtype
    if (eight is None) != (dtype != torch.float8_e4m3fn) or (out_norms is None) != (dtype == torch.int8):
        raise ValueError(f"{name}: the outputs are not those of a product in {dtype}")
    return CudaLaunch(name, "residual", activations, weights, cut, norms, residual, out, eight, out_norms)

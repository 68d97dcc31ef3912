"""Chooses the tile of a GEMM: measured once per GPU and stored as JSON, or estimated if there is no measurement."""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from buzzer import caches
from buzzer.engine.kernels import library
from buzzer.engine.kernels.ahead import Ahead
from buzzer.engine.kernels.facts import Facts
from buzzer.engine.kernels.gemm import Tile, Weights, candidates, default_tile, estimate, linear
from buzzer.engine.kernels.jit import Launch, triton
from buzzer.engine.kernels.offline import SHARED
from buzzer.engine.kernels.rows import Norm, residual_norm
from buzzer.engine.kernels.timing import gpu_name, microseconds
from buzzer.errors import DataError

TRIED = 12  # number of tiles that are measured for a shape
SPREAD_BYTES = 128 << 20  # weights that one timing reads: too many for the L2 cache, so they come from memory


@dataclass(frozen=True)
class Shape:
    """A GEMM: out [m, n] = a [m, k] @ w.T in `dtype`. splits: a norm follows and adds partial sums, so K may be split.
    gelu: GELU follows.

    str(shape) is the key of its stored tile.
    """

    m: int
    n: int
    k: int
    dtype: torch.dtype
    splits: bool
    gelu: bool = False

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k} {str(self.dtype).removeprefix('torch.')}{' norm' if self.splits else ''}"


@dataclass
class Tuned:
    """The stored choices for one GPU. tiles: str(Shape) -> tile. modes: `lowering.program_key` of a program -> mode.

    versions: versions of Triton, torch and CUDA. Choices of other versions are discarded when tuning starts.
    """

    gpu: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    tiles: dict[str, Tile] = field(default_factory=dict)
    modes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, device: str) -> "Tuned":
        """The stored choices for this machine's GPU; empty if there are none, and on a CPU. Raises DataError."""
        path = caches.kernels() / f"{gpu_name()}.json" if device == "cuda" else None
        return cls.read(path) if path and path.is_file() else cls()

    @classmethod
    def read(cls, path: Path) -> "Tuned":
        """The choices in a file. Raises DataError for an invalid file."""
        try:
            stored = json.loads(path.read_text())
            tiles = {shape: Tile(**tile) for shape, tile in stored["tiles"].items()}
            return cls(stored["gpu"], stored["versions"], tiles, dict(stored["modes"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: not a file of stored kernel choices: {error}", "delete it and tune again"
            ) from error

    def write(self, path: Path) -> None:
        """Store the choices as JSON, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")
        aside.replace(path)

    def tile(self, m: int, n: int, k: int, dtype: torch.dtype, splits: bool) -> Tile:
        """The stored tile of a shape, else the tile with the least estimated time."""
        return self.tiles.get(str(Shape(m, n, k, dtype, splits))) or default_tile(m, n, k, dtype, splits)

    def mode(self, program: str) -> str:
        """The stored mode of a program (see `buzzer.engine.fused.lowering.Lowering`), else "plain"."""
        return self.modes.get(program, "plain")


def tried(shape: Shape, shared: int = SHARED) -> list[Tile]:
    """The tiles to measure: at most TRIED with the least estimated time, each with several depths and numbers of stages.

    They fit in `shared` bytes. All stages but one are loads in flight, so a tile needs at most one stage more than the
    steps of a share.
    """
    width = shape.dtype.itemsize
    order = lambda tile: estimate(tile, shape.m, shape.n, shape.k, width)
    cuts = sorted(candidates(shape.m, shape.k, 128 // width, shape.splits), key=order)
    tiles: dict[Tile, None] = {}
    for cut in cuts:
        for depth, stages in ((128 // width, 4), (128 // width, 6), (256 // width, 3)):
            steps = -(-shape.k // (cut.split * depth))
            tile = replace(cut, depth=depth, stages=min(stages, steps + 1))
            if tile.shared(width) <= shared:
                tiles[tile] = None
    return list(tiles)[:TRIED]


def accepted(got: Tensor, want: Tensor, dtype: torch.dtype) -> bool:
    """Whether `got` equals the float64 product `want` as closely as a kernel on operands of `dtype` can compute it.

    INT8 is exact. FP8 tensor cores accumulate with about 14 bits (DeepSeek-AI, arXiv 2412.19437, section 3.3.2). Libraries write
    products of bfloat16 in bfloat16, which has 8 bits.
    """
    if dtype == torch.int8:
        return torch.equal(got, want.to(got.dtype))
    error = (got.double() - want).norm() / want.norm()
    return bool(error < (5e-3 if dtype in (torch.float8_e4m3fn, torch.bfloat16) else 1e-3))


class Bench:
    """A GEMM, and the norm that adds its partial sums, on copies of the weights that together do not fit in the L2 cache."""

    def __init__(self, shape: Shape, device: str) -> None:
        m, n, k = shape.m, shape.n, shape.k
        self.shape, self.device = shape, device
        self.copies = max(2, -(-SPREAD_BYTES // (n * k * shape.dtype.itemsize))) if device == "cuda" else 1
        torch.manual_seed(0)
        self.a, first = (random(rows, k, shape.dtype, device) for rows in (m, n))
        # Weights in floats have no scale. A power of two, so that INT8 products stay exact.
        eight = shape.dtype.itemsize == 1
        scale = self.scale = torch.full((n,), 0.5 ** (k - 1).bit_length(), device=device) if eight else None
        self.zeros, self.ones = torch.zeros(n, device=device), torch.ones(n, device=device)
        self.weights = [Weights(first.clone(), scale, self.zeros) for _ in range(self.copies)]
        self.normed = torch.zeros(m, n, dtype=torch.float16, device=device)
        self.act = "gelu" if shape.gelu else "none"
        self.want = self.a.double() @ first.double().T
        if scale is not None:
            self.want *= scale.double()
        if shape.gelu:
            self.want = F.gelu(self.want)

    def launches(self, tile: Tile) -> list[Launch]:
        """The launches on every copy of the weights. They write `parts`, which is filled with NaN here."""
        m, n = self.shape.m, self.shape.n
        parts, kind = ((tile.split, m, n), torch.float32) if tile.split > 1 else ((m, n), torch.float16)
        self.parts = torch.full(parts, float("nan"), dtype=kind, device=self.device)
        launches: list[Launch] = []
        for weights in self.weights:
            launches.append(linear("gemm", self.a, weights, self.parts, tile, act=self.act))
            if self.shape.splits:
                norm = Norm(self.ones, self.zeros, 1e-12)
                launches.append(residual_norm("norm", self.parts, norm, self.normed))
        return launches

    def library_launches(self) -> list[Launch | library.LibraryLaunch]:
        """The same by a library, with the kernel of the epilogue if there is one. `parts` are the sums before a norm."""
        shape = (self.shape.m, self.shape.n)
        floats = torch.float16 if self.shape.dtype.itemsize == 1 else self.shape.dtype
        kind = library.sums_dtype(self.shape.dtype, floats)
        sums = torch.zeros(shape, dtype=kind, device=self.device)
        self.parts = torch.full(shape, float("nan"), dtype=floats, device=self.device)
        launches: list[Launch | library.LibraryLaunch] = []
        for weights in self.weights:
            if self.shape.splits:
                scale = weights.scale if kind == torch.int32 else None
                norm = Norm(self.ones, self.zeros, 1e-12)
                launches.append(library.product("gemm", self.a, weights, sums))
                launches.append(residual_norm("norm", sums, norm, self.normed, scale=scale))
            else:
                launches += library.linear("gemm", self.a, weights, self.parts, sums, act=self.act)
        if self.shape.splits:
            self.parts = sums
        return launches

    def right(self) -> bool:
        """Whether the last launches have computed the product."""
        got = self.parts.sum(0) if self.parts.ndim == 3 else self.parts
        if got.dtype == torch.int32 and self.scale is not None:
            got = got.double() * self.scale.double()
        # GELU is computed in FP32, so its result is not exact for INT8.
        inexact = self.shape.gelu and self.shape.dtype == torch.int8
        return accepted(got, self.want, torch.float16 if inexact else self.shape.dtype)


def launches_of(shape: Shape, tile: Tile) -> list[Launch]:
    """The launches that will be measured, on the "meta" device, so that they can be compiled ahead."""
    return Bench(shape, "meta").launches(tile)


@dataclass(frozen=True)
class TuningFacts(Facts):
    """A `TuningResult` for the command line; us: microseconds. library_us: of NVIDIA's library, with its epilogue."""

    shape: str
    tile: Tile | None
    us: float | None
    measured: int
    refused: int
    library_us: float | None = None
    library_refused: str | None = None


@dataclass
class TuningResult:
    """The fastest correct tile of a shape so far (None if there is none), its time in microseconds, and how many tiles were
    measured and refused.

    by_library: microseconds of the same product by a library.  library_refused: why it must not be used.
    """

    shape: Shape
    tile: Tile | None = None
    microseconds: float = inf
    measured: int = 0
    refused: int = 0
    by_library: float | None = None
    library_refused: str | None = None

    def facts(self) -> TuningFacts:
        """The choice for the command line."""
        time_us = round(self.microseconds, 2) if self.tile else None
        by_library = None if self.by_library is None else round(self.by_library, 2)
        return TuningFacts(
            str(self.shape), self.tile, time_us, self.measured, self.refused, by_library, self.library_refused
        )


def measure(bench: Bench, tiles: Sequence[tuple[Tile, Future[None]]], until: float) -> TuningResult:
    """The fastest tile with a correct result, of those that can be measured before `until` (a value of `time.monotonic`).

    tiles: each with the future of its compilation. A tile that needs more resources than the GPU has is refused.
    """
    choice = TuningResult(bench.shape)
    for tile, ready in tiles:
        if not wait([ready], max(0.0, until - time.monotonic())).done:
            return choice
        try:
            time_us = microseconds(bench.launches(tile), count=10) / bench.copies
        except (triton.runtime.errors.OutOfResources, triton.runtime.errors.PTXASError):
            choice.refused += 1
            continue
        choice.measured += 1
        if not bench.right():
            choice.refused += 1
        elif time_us < choice.microseconds:
            choice.tile, choice.microseconds = tile, time_us
    return choice


def measure_library(bench: Bench, choice: TuningResult) -> None:
    """Time the product by a library, and mark the chosen tile if the library is faster and its result is correct."""
    try:
        time_us = microseconds(bench.library_launches(), count=10) / bench.copies
    except RuntimeError as reason:  # the library lacks the product, or its workspace does not fit
        choice.library_refused = f"{type(reason).__name__}: {str(reason).partition(chr(10))[0]}"
        return
    choice.by_library = time_us
    if not bench.right():
        choice.library_refused = "its result is wrong"
    elif choice.tile and time_us < choice.microseconds:
        choice.tile = replace(choice.tile, library=True)


def random(rows: int, columns: int, dtype: torch.dtype, device: str) -> Tensor:
    """Normally distributed values [rows, columns]; for int8 multiplied by 40 and rounded."""
    x = torch.randn(rows, columns, device=device)
    return (x * 40).round().clamp(-128, 127).to(dtype) if dtype == torch.int8 else x.to(dtype)


def tune(
    shapes: Sequence[Shape], kept: Tuned, path: Path, ahead: Ahead, shared: int, until: float
) -> Iterator[TuningResult]:
    """Measure each shape, and store its choice in `kept` and at `path` at once. Shapes that are not reached before `until` keep
    their choice."""
    versions: Any = {
        "triton": triton.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    if kept.versions != versions:  # with another compiler, other tiles may be the fastest
        kept.tiles, kept.modes, kept.versions = {}, {}, versions
    kept.gpu = torch.cuda.get_device_name()
    compiling = [
        [(tile, ahead.start(launches_of, shape, tile)) for tile in tried(shape, shared)] for shape in shapes
    ]
    for shape, tiles in zip(shapes, compiling, strict=True):
        bench = Bench(shape, "cuda")
        choice = measure(bench, tiles, until)
        if time.monotonic() < until:
            measure_library(bench, choice)
        if choice.tile:
            kept.tiles[str(shape)] = choice.tile
            kept.write(path)
        yield choice


def encoder_shapes(tokens: int, size: int, wide: int, dtype: torch.dtype) -> list[Shape]:
    """The shapes of a layer's four GEMMs: query-key-value, out, up, down."""
    return [
        Shape(tokens, 3 * size, size, dtype, False),
        Shape(tokens, size, size, dtype, True),
        Shape(tokens, wide, size, dtype, False, gelu=True),
        Shape(tokens, size, wide, dtype, True),
    ]

"""Which tile a GEMM takes: measured once a GPU and kept as JSON, estimated where nothing was measured."""

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

from buzzer import caches
from buzzer.engine.kernels.ahead import Ahead
from buzzer.engine.kernels.gemm import Tile, Weights, candidates, default_tile, estimate, linear
from buzzer.engine.kernels.jit import Launch, triton
from buzzer.engine.kernels.offline import SHARED
from buzzer.engine.kernels.rows import Norm, residual_norm
from buzzer.engine.kernels.timing import gpu_name, microseconds
from buzzer.errors import DataError

TRIED = 12  # tiles of a shape that are measured
SPREAD_BYTES = 128 << 20  # weights that a timing goes through, so that they come from memory and not from L2


@dataclass(frozen=True)
class Shape:
    """out [m, n] = a [m, k] @ w.T in `dtype`; `splits`: its sum may be left in shares for a norm."""

    m: int
    n: int
    k: int
    dtype: torch.dtype
    splits: bool

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k} {str(self.dtype).removeprefix('torch.')}{' norm' if self.splits else ''}"


@dataclass
class Tuned:
    """The choices for one GPU. tiles: by a Shape's text. modes: how a program is launched, by its text."""

    gpu: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    tiles: dict[str, Tile] = field(default_factory=dict)
    modes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, device: str) -> "Tuned":
        """What was stored for this machine's GPU; empty where nothing was, and on a CPU."""
        path = caches.kernels() / f"{gpu_name()}.json" if device == "cuda" else None
        return cls.read(path) if path and path.is_file() else cls()

    @classmethod
    def read(cls, path: Path) -> "Tuned":
        """Raises DataError for a file that is no such JSON."""
        try:
            kept = json.loads(path.read_text())
            tiles = {shape: Tile(**tile) for shape, tile in kept["tiles"].items()}
            return cls(kept["gpu"], kept["versions"], tiles, dict(kept["modes"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: no stored kernel choices: {error}", "delete it and tune again"
            ) from error

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")
        aside.replace(path)

    def tile(self, m: int, n: int, k: int, dtype: torch.dtype, splits: bool) -> Tile:
        """The stored tile of a shape, else the estimate's."""
        return self.tiles.get(str(Shape(m, n, k, dtype, splits))) or default_tile(m, n, k, dtype, splits)

    def mode(self, program: str) -> str:
        """The stored mode of a program (see `fused_plan.Lowering`), else plain launches."""
        return self.modes.get(program, "plain")


def tried(shape: Shape, shared: int = SHARED) -> list[Tile]:
    """Tiles to measure, at most TRIED of them: the cuts of least estimated time, each with several depths and counts of stages
    that fit in `shared` bytes. All stages but one are loads in flight, so that more than a share has steps are of no use."""
    width = shape.dtype.itemsize
    order = lambda tile: estimate(tile, shape.m, shape.n, shape.k, width)
    cuts = sorted(candidates(shape.m, shape.n, shape.k, 128 // width, shape.splits), key=order)
    found: dict[Tile, None] = {}
    for cut in cuts:
        for depth, stages in ((128 // width, 4), (128 // width, 6), (256 // width, 3)):
            steps = -(-shape.k // (cut.split * depth))
            tile = replace(cut, depth=depth, stages=min(stages, steps + 1))
            if tile.shared(width) <= shared:
                found[tile] = None
    return list(found)[:TRIED]


def accepted(got: Tensor, want: Tensor, dtype: torch.dtype) -> bool:
    """Whether `got` is the float64 product `want` as well as a kernel on operands of `dtype` can make it.

    INT8 is exact. FP8's tensor cores add with about 14 bits (DeepSeek-AI, arXiv 2412.19437, section 3.3.2).
    """
    if dtype == torch.int8:
        return torch.equal(got, want.to(got.dtype))
    error = (got.double() - want).norm() / want.norm()
    return bool(error < (5e-3 if dtype == torch.float8_e4m3fn else 1e-3))


class Bench:
    """A GEMM (and the norm that adds its shares) on enough copies of the weights that L2 does not hold them."""

    def __init__(self, shape: Shape, device: str) -> None:
        m, n, k = shape.m, shape.n, shape.k
        self.shape, self.device = shape, device
        self.copies = max(2, -(-SPREAD_BYTES // (n * k * shape.dtype.itemsize))) if device == "cuda" else 1
        torch.manual_seed(0)
        self.a, first = (random(rows, k, shape.dtype, device) for rows in (m, n))
        # A power of two, so that INT8 products stay exact.
        scale = torch.full((n,), 0.5 ** (k - 1).bit_length(), device=device)
        self.zeros, self.ones = torch.zeros(n, device=device), torch.ones(n, device=device)
        self.weights = [Weights(first.clone(), scale, self.zeros) for _ in range(self.copies)]
        self.normed = torch.zeros(m, n, dtype=torch.float16, device=device)
        self.want = self.a.double() @ first.double().T * scale.double()

    def launches(self, tile: Tile) -> list[Launch]:
        """Every copy's; they write `parts`, which is poisoned."""
        m, n = self.shape.m, self.shape.n
        parts, kind = ((tile.split, m, n), torch.float32) if tile.split > 1 else ((m, n), torch.float16)
        self.parts = torch.full(parts, float("nan"), dtype=kind, device=self.device)
        found: list[Launch] = []
        for weights in self.weights:
            found.append(linear("gemm", self.a, weights, self.parts, tile))
            if self.shape.splits:
                norm = Norm(self.ones, self.zeros, 1e-12)
                found.append(residual_norm("norm", self.parts, norm, self.normed))
        return found

    def right(self) -> bool:
        """Whether what was launched last has computed the product."""
        got = self.parts.sum(0) if self.parts.ndim == 3 else self.parts
        return accepted(got, self.want, self.shape.dtype)


def launches_of(shape: Shape, tile: Tile) -> list[Launch]:
    """What is measured, without values: for compilation ahead."""
    return Bench(shape, "meta").launches(tile)


@dataclass
class Choice:
    """The fastest right tile of a shape so far (None: none), its time, how many were measured and how many refused."""

    shape: Shape
    tile: Tile | None = None
    microseconds: float = inf
    measured: int = 0
    refused: int = 0

    def facts(self) -> dict[str, Any]:
        """For people and JSON."""
        tile = asdict(self.tile) if self.tile else None
        taken = round(self.microseconds, 2) if self.tile else None
        counts = {"measured": self.measured, "refused": self.refused}
        return {"shape": str(self.shape), "tile": tile, "us": taken, **counts}


def measure(bench: Bench, tiles: Sequence[tuple[Tile, Future[None]]], until: float) -> Choice:
    """The fastest tile whose result is right, of those that can be measured until that time (`time.monotonic`).

    Each comes with its compilation, which is waited for. A tile that asks for more than there is, is refused.
    """
    choice = Choice(bench.shape)
    for tile, ready in tiles:
        if not wait([ready], max(0.0, until - time.monotonic())).done:
            return choice
        try:
            taken = microseconds(bench.launches(tile), count=10) / bench.copies
        except (triton.runtime.errors.OutOfResources, triton.runtime.errors.PTXASError):
            choice.refused += 1
            continue
        choice.measured += 1
        if not bench.right():
            choice.refused += 1
        elif taken < choice.microseconds:
            choice.tile, choice.microseconds = tile, taken
    return choice


def random(rows: int, columns: int, dtype: torch.dtype, device: str) -> Tensor:
    x = torch.randn(rows, columns, device=device)
    return (x * 40).round().clamp(-128, 127).to(dtype) if dtype == torch.int8 else x.to(dtype)


def tune(
    shapes: Sequence[Shape], kept: Tuned, path: Path, ahead: Ahead, shared: int, until: float
) -> Iterator[Choice]:
    """Measure each shape and store what was found at once; shapes that are not reached until that time are left as they are."""
    versions: dict[str, Any] = {
        "triton": triton.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    if kept.versions != versions:  # choices of another compiler are not this one's
        kept.tiles, kept.modes, kept.versions = {}, {}, versions
    kept.gpu = torch.cuda.get_device_name()
    every = [
        [(tile, ahead.start(launches_of, shape, tile)) for tile in tried(shape, shared)] for shape in shapes
    ]
    for shape, tiles in zip(shapes, every, strict=True):
        choice = measure(Bench(shape, "cuda"), tiles, until)
        if choice.tile:
            kept.tiles[str(shape)] = choice.tile
            kept.write(path)
        yield choice


def encoder_shapes(tokens: int, size: int, wide: int, dtype: torch.dtype) -> list[Shape]:
    """The four GEMMs of a layer."""
    return [
        Shape(tokens, 3 * size, size, dtype, False),
        Shape(tokens, size, size, dtype, True),
        Shape(tokens, wide, size, dtype, False),
        Shape(tokens, size, wide, dtype, True),
    ]

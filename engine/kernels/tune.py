"""Which tile a GEMM takes: measured once a GPU and kept as JSON, estimated where nothing was measured.

python -m buzzer.engine.kernels.tune --tokens 128 --precision fp8 --layers 24 --size 1024 --wide 4096 --heads 16
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from buzzer.engine.kernels.gemm import Tile, Weights, candidates, default_tile, estimate, linear
from buzzer.engine.kernels.jit import Launch, triton
from buzzer.engine.kernels.rows import Norm, residual_norm
from buzzer.engine.kernels.timing import gpu_name, microseconds
from buzzer.errors import DataError

CUTS = 6  # ways to cut a shape that are measured: those of least estimated time, each at several depths
SPREAD_BYTES = 128 << 20  # weights that a timing goes through, so that they come from memory and not from L2


def cache() -> Path:
    """Where choices are kept: $BUZZER_CACHE/kernels, or kernels in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("BUZZER_CACHE") or Path(base) / "buzzer") / "kernels"


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
        path = cache() / f"{gpu_name()}.json" if device == "cuda" else None
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


def measure(shape: Shape) -> tuple[Tile, float]:
    """The fastest tile of those of least estimated time, and its microseconds. Needs a GPU.

    A tile that does not compile or asks for too much shared memory is left out; so is one whose result is not the
    first one's.
    """
    best, least, reference = None, float("inf"), None
    for tile in tried(shape):
        timing = Timing(shape, tile)
        try:
            taken = microseconds(timing.launches, count=10) / timing.copies
        except (triton.runtime.errors.OutOfResources, triton.runtime.errors.PTXASError):
            continue
        result = timing.result()
        reference = result if reference is None else reference
        if torch.allclose(result, reference, rtol=2e-2, atol=2e-2) and taken < least:
            best, least = tile, taken
    return best or default_tile(*asdict(shape).values()), least


def tried(shape: Shape) -> list[Tile]:
    """Tiles to measure: the cuts of least estimated time, each at two depths and three counts of loads in flight."""
    width = shape.dtype.itemsize
    order = lambda tile: estimate(tile, shape.m, shape.n, shape.k, width)
    cuts = sorted(candidates(shape.m, shape.n, shape.k, 128 // width, shape.splits), key=order)[:CUTS]
    return [
        replace(cut, depth=depth, stages=stages)
        for cut in cuts
        for depth in (128 // width, 256 // width)
        for stages in (3, 4, 6)
    ]


class Timing:
    """A GEMM (and the norm that adds its shares) on enough copies of the weights that L2 does not hold them."""

    def __init__(self, shape: Shape, tile: Tile) -> None:
        m, n, k = shape.m, shape.n, shape.k
        self.copies = max(2, -(-SPREAD_BYTES // (n * k * shape.dtype.itemsize)))
        torch.manual_seed(0)
        a = random(m, k, shape.dtype)
        scale = torch.full((n,), 1 / k, device="cuda")
        first = random(n, k, shape.dtype)
        parts = (tile.split, m, n) if tile.split > 1 else (m, n)
        kind = torch.float32 if tile.split > 1 else torch.float16
        self.parts = torch.zeros(parts, dtype=kind, device="cuda")
        self.normed = torch.zeros(m, n, dtype=torch.float16, device="cuda")
        ones, bias = torch.ones(n, device="cuda"), torch.zeros(n, device="cuda")
        self.launches: list[Launch] = []
        for _ in range(self.copies):
            weights = Weights(first.clone(), scale, bias)
            self.launches.append(linear("gemm", a, weights, self.parts, tile))
            if shape.splits:
                self.launches.append(residual_norm("norm", self.parts, Norm(ones, bias, 1e-12), self.normed))

    def result(self) -> Tensor:
        return self.parts.float().sum(0) if self.parts.ndim == 3 else self.parts.float()


def random(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    x = torch.randn(rows, columns, device="cuda")
    return (x * 40).round().clamp(-128, 127).to(dtype) if dtype == torch.int8 else x.to(dtype)


def tune(shapes: Iterable[Shape], kept: Tuned, path: Path) -> Iterable[tuple[Shape, Tile, float]]:
    """Measure each shape and store it at once; yields what was found."""
    versions: dict[str, Any] = {
        "triton": triton.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    if kept.versions != versions:  # choices of another compiler are not this one's
        kept.tiles, kept.modes, kept.versions = {}, {}, versions
    kept.gpu = torch.cuda.get_device_name()
    for shape in shapes:
        tile, taken = measure(shape)
        kept.tiles[str(shape)] = tile
        kept.write(path)
        yield shape, tile, taken


def encoder_shapes(tokens: int, size: int, wide: int, dtype: torch.dtype) -> list[Shape]:
    """The four GEMMs of a layer."""
    return [
        Shape(tokens, 3 * size, size, dtype, False),
        Shape(tokens, size, size, dtype, True),
        Shape(tokens, wide, size, dtype, False),
        Shape(tokens, size, wide, dtype, True),
    ]

"""The order of weights in memory, the cut of a product among blocks, and the shared memory of a block, as in `gemm.cu`."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from buzzer.errors import UnsupportedError

# Tokens, output columns of a block, bytes of a row in a chunk of the depth.
ROWS, COLUMNS, CHUNK = 128, 64, 128
MOST_TILES = 16  # tiles of a normed row
MOST_BLOCKS = 8  # blocks of a cluster
MULTIPROCESSORS = 132  # of an H100
VECTORS, PITCH = 6, COLUMNS + 8  # vectors of a tile; floats of a row of partial sums
MOST_SHARED = 227 << 10  # bytes of shared memory of a block


@dataclass(frozen=True)
class Kind:
    """A type of operands. splits: shares of the depth, each of which is a kernel."""

    name: str
    splits: tuple[int, ...]


KINDS = {
    torch.float8_e4m3fn: Kind("fp8", (1, 2, 4, 8)),
    torch.int8: Kind("int8", (1, 2, 8)),
    torch.float16: Kind("fp16", (2, 8)),
}


def swizzled(offset: int) -> int:
    """The place of a byte in a tile whose rows have 128 bytes: units of 16 bytes are permuted in each row, so that 8 rows of a
    column of units are in different banks (PTX ISA, "128-byte swizzle mode"). It is its own inverse."""
    return offset ^ (offset >> 7 & 7) << 4


def weight_offset(column: int, depth: int, depths: int) -> int:
    """The place of a byte of a matrix [columns, depths] of bytes in the stored order: tiles of 64 columns, then chunks of 128 of the
    depth, each swizzled."""
    tile, chunk = column // COLUMNS, depth // CHUNK
    inside = swizzled(column % COLUMNS * CHUNK + depth % CHUNK)
    return (tile * (depths // CHUNK) + chunk) * COLUMNS * CHUNK + inside


def tiled(weight: Tensor) -> Tensor:
    """A matrix [columns, depths] as bytes in the order of `weight_offset`: [tiles, chunks, 8192]."""
    values = weight.view(torch.uint8)
    columns, depths = values.shape
    chunks = values.reshape(columns // COLUMNS, COLUMNS, depths // CHUNK, CHUNK)
    return chunks.permute(0, 2, 1, 3).flatten(2)[:, :, places(weight.device)].contiguous()


@cache
def places(device: torch.device) -> Tensor:
    """The place of each byte of a chunk, int64 [8192]."""
    return torch.tensor([swizzled(at) for at in range(COLUMNS * CHUNK)], device=device)


@dataclass(frozen=True)
class Cut:
    """How a product is divided.

    split: shares of the depth; the blocks of a cluster add their sums.  share: blocks of a cluster with the same part of the depth
    and different columns, to which each activation is copied at once. A depth is in bytes of a row.
    """

    split: int
    share: int = 1

    def chunks(self, depth: int) -> int:
        """Chunks of a share of the depth."""
        return depth // CHUNK // self.split

    def blocks(self, columns: int) -> int:
        """Blocks of the grid."""
        return columns // COLUMNS * self.split

    def shared(self, depth: int) -> int:
        """Bytes of shared memory of a block: activations and weights, which the partial sums replace, then vectors and barriers."""
        copied = self.chunks(depth) * (ROWS + COLUMNS) * CHUNK
        return max(copied, ROWS * PITCH * 4) + VECTORS * COLUMNS * 4 + 8 * self.chunks(depth)


def cuts(columns: int, depth: int, dtype: torch.dtype = torch.float8_e4m3fn) -> list[Cut]:
    """The cuts of a product of a shape whose blocks fit in one wave and in the shared memory, the best guess first: the most
    blocks, then the fewest shares, then no multicast. depth: values, not bytes.

    With the most blocks, each has the least shared memory. A multiprocessor has 228 KiB, of which a block takes 1 KiB more: two blocks
    of at most 113 KiB fit, so a kernel's copies can start while the previous one runs.
    """
    kind, row = KINDS[dtype], depth * dtype.itemsize
    fits = [
        Cut(split, share)
        for split in kind.splits
        for share in (1, 2, 4)
        if columns % (COLUMNS * share) == 0 and row % (CHUNK * split) == 0 and split * share <= MOST_BLOCKS
    ]
    fits = [cut for cut in fits if cut.blocks(columns) <= MULTIPROCESSORS and cut.shared(row) <= MOST_SHARED]
    return sorted(fits, key=lambda cut: (-cut.blocks(columns), cut.split, cut.share))


def cut_of(
    columns: int,
    depth: int,
    multicast: bool,
    dtype: torch.dtype = torch.float8_e4m3fn,
    most: int = MOST_BLOCKS,
) -> Cut:
    """The cut to use. multicast: copy each activation at once to as many blocks as a cluster of four has, or of two shares of the depth.
    depth: values, not bytes.  most: shares of the depth.

    Raises UnsupportedError for a shape without a cut.
    """
    fits = [cut for cut in cuts(columns, depth, dtype) if cut.split <= most]
    if not fits:
        raise UnsupportedError(
            f"the CUDA kernels have no cut for a product of {columns} columns and depth {depth} in {KINDS[dtype].name}"
            + (f" with at most {most} shares of the depth" if most < MOST_BLOCKS else "")
        )
    best = fits[0]
    if not multicast:
        return best
    return max(
        (cut for cut in fits if cut.split == best.split and cut.split * cut.share <= 4),
        default=best,
        key=lambda cut: cut.share,
    )

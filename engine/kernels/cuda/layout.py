"""The order of weights in memory, the cut of a product among blocks, and the shared memory of a block, as in `gemm.cu`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from buzzer.errors import UnsupportedError

ROWS, COLUMNS, CHUNK = (
    128,
    64,
    128,
)  # tokens, output columns of a block, bytes of a row in a chunk of the depth
MOST_TILES = 16  # tiles of a normed row
SPLITS = (1, 2, 4, 8)  # each is a kernel; a cluster has at most 8 blocks
MULTIPROCESSORS = 132  # of an H100
VECTORS, PITCH = 6, COLUMNS + 8  # vectors of a tile; floats of a row of partial sums
# Bytes of shared memory with which a block and a block of the next kernel fit in a multiprocessor: 228 KiB, less 1 KiB per block.
MOST_SHARED = 113 << 10


def swizzled(offset: int) -> int:
    """The place of a byte in a tile whose rows have 128 bytes: units of 16 bytes are permuted in each row, so that 8 rows of a
    column of units are in different banks (PTX ISA, "128-byte swizzle mode"). It is its own inverse."""
    return offset ^ (offset >> 7 & 7) << 4


def weight_offset(column: int, depth: int, depths: int) -> int:
    """The place of a weight of a matrix [columns, depths] in the stored order: tiles of 64 columns, then chunks of 128 of the
    depth, each swizzled."""
    tile, chunk = column // COLUMNS, depth // CHUNK
    inside = swizzled(column % COLUMNS * CHUNK + depth % CHUNK)
    return (tile * (depths // CHUNK) + chunk) * COLUMNS * CHUNK + inside


def tiled(weight: Tensor) -> Tensor:
    """A matrix of bytes or E4M3 values [columns, depths] as bytes in the order of `weight_offset`: [tiles, chunks, 8192]."""
    columns, depths = weight.shape
    chunks = weight.view(torch.uint8).reshape(columns // COLUMNS, COLUMNS, depths // CHUNK, CHUNK)
    places = torch.tensor([swizzled(at) for at in range(COLUMNS * CHUNK)], device=weight.device)
    return chunks.permute(0, 2, 1, 3).flatten(2)[:, :, places].contiguous()


@dataclass(frozen=True)
class Cut:
    """How a product is divided.

    split: shares of the depth; the blocks of a cluster add their sums.  share: blocks of a cluster with the same part of the depth
    and different columns, to which each activation is copied at once.
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


def cuts(columns: int, depth: int) -> list[Cut]:
    """The cuts of a product of a shape whose blocks fit in one wave and twice in a multiprocessor, the best guess first: the most
    blocks, then the fewest shares, then no multicast."""
    fits = [
        Cut(split, share)
        for split in SPLITS
        for share in (1, 2, 4)
        if columns % (COLUMNS * share) == 0 and depth % (CHUNK * split) == 0 and split * share <= max(SPLITS)
    ]
    fits = [
        cut for cut in fits if cut.blocks(columns) <= MULTIPROCESSORS and cut.shared(depth) <= MOST_SHARED
    ]
    return sorted(fits, key=lambda cut: (-cut.blocks(columns), cut.split, cut.share))


def cut_of(columns: int, depth: int, multicast: bool) -> Cut:
    """The cut to use. multicast: copy each activation at once to as many blocks as a cluster of four has, or of two shares of the depth.

    Raises UnsupportedError for a shape without a cut.
    """
    fits = cuts(columns, depth)
    if not fits:
        raise UnsupportedError(
            f"the CUDA kernels have no cut for a product of {columns} columns and depth {depth}"
        )
    best = fits[0]
    if not multicast:
        return best
    return max(
        (cut for cut in fits if cut.split == best.split and cut.split * cut.share <= 4),
        default=best,
        key=lambda cut: cut.share,
    )

"""The order of weights against an independent model, and the cut of products."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from buzzer.engine.kernels.cuda.layout import (
    CHUNK,
    COLUMNS,
    MOST_SHARED,
    MULTIPROCESSORS,
    Cut,
    cut_of,
    cuts,
    swizzled,
    tiled,
    weight_offset,
)
from buzzer.errors import UnsupportedError

BERT_LARGE = {"qkv": (3072, 1024), "out": (1024, 1024), "up": (4096, 1024), "down": (1024, 4096)}


def core_matrix_place(row: int, byte: int) -> int:
    """The place of a byte in a tile as the PTX ISA draws it: atoms of 8 rows, each of eight units of 16 bytes; unit u of row r of an
    atom stands at place u xor r."""
    atom, r = divmod(row, 8)
    unit, inside = divmod(byte, 16)
    return atom * 1024 + r * 128 + (unit ^ r) * 16 + inside


@given(st.integers(0, COLUMNS - 1), st.integers(0, CHUNK - 1))
def test_the_swizzle_is_that_of_the_core_matrices(row: int, byte: int) -> None:
    assert swizzled(row * CHUNK + byte) == core_matrix_place(row, byte)
    assert swizzled(swizzled(row * CHUNK + byte)) == row * CHUNK + byte


@given(st.integers(0, 7), st.integers(0, 15))
def test_eight_rows_of_a_unit_are_in_different_banks(unit: int, atom: int) -> None:
    """Eight rows of 16 bytes are read at once; they must cover all 32 banks of four bytes."""
    units = [swizzled((8 * atom + row) * CHUNK + unit * 16) // 16 % 8 for row in range(8)]
    assert sorted(units) == list(range(8))


@pytest.mark.parametrize(("columns", "depth"), [(64, 128), (192, 128), (64, 384), (128, 256)])
def test_tiled_weights_are_a_permutation_with_each_value_at_its_offset(columns: int, depth: int) -> None:
    torch.manual_seed(0)
    weight = torch.randint(0, 256, (columns, depth), dtype=torch.uint8)
    stored = tiled(weight).flatten()
    offsets = torch.tensor([[weight_offset(c, d, depth) for d in range(depth)] for c in range(columns)])
    assert sorted(offsets.flatten().tolist()) == list(range(columns * depth))
    assert torch.equal(stored[offsets], weight)


@given(st.sampled_from(list(BERT_LARGE.values())), st.sampled_from([1, 2, 4, 8]), st.data())
def test_a_block_reads_consecutive_bytes(shape: tuple[int, int], split: int, data: st.DataObject) -> None:
    """A tile's share of the depth is one run of bytes, and its chunks follow each other."""
    columns, depth = shape
    tile = data.draw(st.integers(0, columns // COLUMNS - 1))
    part = data.draw(st.integers(0, split - 1))
    chunks = Cut(split).chunks(depth)
    first = (tile * split + part) * chunks * COLUMNS * CHUNK
    column, inside = data.draw(st.integers(0, COLUMNS - 1)), data.draw(st.integers(0, chunks * CHUNK - 1))
    place = weight_offset(tile * COLUMNS + column, part * chunks * CHUNK + inside, depth) - first
    assert 0 <= place < chunks * COLUMNS * CHUNK
    assert place // (COLUMNS * CHUNK) == inside // CHUNK


@pytest.mark.parametrize("multicast", [False, True])
def test_the_products_of_bert_large_fill_one_wave(multicast: bool) -> None:
    """Two neighbours fit in a multiprocessor: 228 KiB of shared memory, of which the hardware reserves 1 KiB per block."""
    chosen = {name: cut_of(*shape, multicast) for name, shape in BERT_LARGE.items()}
    assert {name: cut.blocks(BERT_LARGE[name][0]) for name, cut in chosen.items()} == {
        "qkv": 96, "out": 128, "up": 128, "down": 128,
    }  # fmt: skip
    assert {name: cut.share for name, cut in chosen.items()} == {
        "qkv": 1 + multicast, "out": 1, "up": 1 + multicast, "down": 1,
    }  # fmt: skip
    shared = [cut.shared(BERT_LARGE[name][1]) for name, cut in chosen.items()]
    assert all(a + b + 2048 <= 228 << 10 for a in shared for b in shared)


def test_fewer_shares_are_smaller_clusters() -> None:
    chosen = {name: cut_of(*shape, False, most=4) for name, shape in BERT_LARGE.items()}
    assert {name: (cut.split, cut.blocks(BERT_LARGE[name][0])) for name, cut in chosen.items()} == {
        "qkv": (2, 96), "out": (4, 64), "up": (2, 128), "down": (4, 64),
    }  # fmt: skip
    with pytest.raises(UnsupportedError, match="with at most 4 shares"):
        cut_of(*BERT_LARGE["down"], False, torch.int8, most=4)


@given(st.integers(1, 80), st.integers(1, 40))
def test_cuts_cover_the_product(tiles: int, chunks: int) -> None:
    columns, depth = tiles * COLUMNS, chunks * CHUNK
    for cut in cuts(columns, depth):
        assert cut.chunks(depth) * cut.split * CHUNK == depth
        assert cut.blocks(columns) % (cut.split * cut.share) == 0
        assert cut.blocks(columns) <= MULTIPROCESSORS
        assert cut.shared(depth) <= MOST_SHARED
        assert cut.split * cut.share <= 8


def test_a_shape_without_a_cut_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="100 columns and depth 128"):
        cut_of(100, 128, False)

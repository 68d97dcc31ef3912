"""The arrays that `backends/forest.c` reads, made from the nodes of trees."""

from dataclasses import dataclass

import numpy as np

from buzzer.engine.infer.boosted import Nodes
from buzzer.engine.infer.session import Array

# As in forest.c.
BLOCK = 128
LOWEST, HIGHEST = -128, 127
RANKS = 255
TOP = 8  # levels of a tree that are evaluated for many rows at once

NODE = np.dtype([("column", "u4"), ("threshold", "u4")])
DEEP = np.dtype([("left", "i4"), ("right", "i4"), ("column", "u4"), ("threshold", "i4"), ("value", "f4")])
TREE = np.dtype([("depth", "i4"), ("deep", "i4"), ("node", "i8"), ("leaf", "i8")])
FEATURE = np.dtype([("column", "i4"), ("steps", "i4"), ("threshold", "i8"), ("code", "i4"), ("codes", "i4")])
CODES = np.dtype([("rank", "i4"), ("missing", "i4")])


@dataclass(frozen=True)
class Layout:
    """Arrays of the structs in forest.c, in the order of the struct `forest`."""

    nodes: Array
    leaves: Array
    links: Array
    deep: Array
    trees: Array
    ends: Array
    bases: Array
    features: Array
    keys: Array
    columns: Array


def keys_of(values: Array) -> Array:
    """Integers in the order of floats, int32, with -0 equal to 0. Unlike a comparison of floats, theirs never flushes denormals."""
    bits = values.view(np.int32)
    return np.where(bits < 0, np.int32(-(2**31)) - bits, bits)


@dataclass(frozen=True)
class Codes:
    """How rows become codes, and the comparisons of codes that the nodes make."""

    features: Array
    keys: Array
    columns: Array
    column: Array  # uint32 [nodes]: offset of the node's column in a block
    threshold: Array  # int8 [nodes]: a row goes right if its code is greater


def encode(nodes: Nodes) -> Codes:
    """The ranks of the thresholds.

    A column of codes holds RANKS thresholds of a feature, and one direction of missing values. So a feature has several columns if it
    has more thresholds or both directions.
    """
    inner = nodes.left >= 0
    feature = nodes.feature[inner]
    # Sorting by feature, then by threshold.
    combined = (feature << 32) + (keys_of(nodes.value[inner]).astype(np.int64) + 2**31)
    distinct, place = np.unique(combined, return_inverse=True)
    first = np.flatnonzero(np.diff(distinct >> 32, prepend=-1))  # of each feature
    counts = np.diff(first, append=len(distinct))
    of = np.repeat(np.arange(len(first)), counts)[place]  # the feature of a node
    rank = place - first[of]
    steps = np.array([int(count).bit_length() for count in counts], dtype=np.int32)
    starts = before(2**steps - 1)
    keys = np.full(int((2**steps - 1).sum()), 2**31 - 1, dtype=np.int32)
    keys[np.repeat(starts - first, counts) + np.arange(len(distinct))] = (distinct & 0xFFFFFFFF) - 2**31

    # A segment is RANKS thresholds of a feature. It has a column for each direction that its nodes have.
    segments = -(-counts // RANKS)
    direction = 2 * (before(segments)[of] + rank // RANKS) + nodes.default_left[inner]
    occurs = np.zeros(2 * int(segments.sum()), dtype=bool)
    occurs[direction] = True
    segment, left = np.divmod(np.flatnonzero(occurs), 2)
    owner = np.repeat(np.arange(len(first)), segments)[segment]
    columns = np.zeros(len(segment), CODES)
    columns["rank"] = (segment - before(segments)[owner]) * RANKS
    columns["missing"] = np.where(left, LOWEST, HIGHEST)
    features = np.zeros(len(first), FEATURE)
    features["column"], features["steps"], features["threshold"] = distinct[first] >> 32, steps, starts
    features["codes"] = np.bincount(owner, minlength=len(first))
    features["code"] = before(features["codes"])

    of_nodes = np.zeros(len(inner), np.uint32)
    of_nodes[inner] = before(occurs)[direction] * BLOCK
    limits = np.zeros(len(inner), np.int8)  # irrelevant for a leaf: all places below it have the same leaf
    limits[inner] = rank % RANKS + LOWEST
    return Codes(features, keys, columns, of_nodes, limits)


def before(counts: Array) -> Array:
    """The sum of the counts before each, int64."""
    return np.cumsum(counts, dtype=np.int64) - counts


def post_order(depth: int) -> Array:
    """The nodes of a perfect tree by level (children of i: 2i + 1 and 2i + 2), in the order left subtree, right subtree, root."""

    def visit(node: int, levels: int) -> list[int]:
        if levels == 0:
            return []
        return [*visit(2 * node + 1, levels - 1), *visit(2 * node + 2, levels - 1), node]

    return np.array(visit(0, depth))


def top_levels(nodes: Nodes) -> list[Array]:
    """The node at each place of the first TOP levels and of the level below, [trees, 2^level]. A leaf's places below it have the leaf."""
    levels = [nodes.roots[:, None]]
    for _ in range(TOP):
        at = levels[-1]
        leaf = nodes.left[at] < 0
        below = [np.where(leaf, at, side[at]) for side in (nodes.left, nodes.right)]
        levels.append(np.stack(below, axis=2).reshape(len(at), -1))
    return levels


def lay_out(nodes: Nodes) -> Layout:
    """The arrays for forest.c. Every tree is padded to a perfect one of its own depth, of at most TOP levels; nodes below are `deep`."""
    codes = encode(nodes)
    levels = top_levels(nodes)
    inner = nodes.left >= 0
    # A tree has as many levels as have an inner node, and at least one.
    depths = np.maximum(sum(inner[at].any(axis=1).astype(np.int32) for at in levels[:TOP]), 1)
    trees = np.zeros(len(nodes.roots), TREE)
    trees["depth"], trees["deep"] = depths, inner[levels[TOP]].any(axis=1)
    trees["node"] = before(2**depths - 1)
    trees["leaf"] = before(2**depths)
    tops = np.zeros(int((2**depths - 1).sum()), NODE)
    exits = np.zeros(int((2**depths).sum()), np.int64)
    for depth in np.unique(depths):
        chosen = np.flatnonzero(depths == depth)
        at = np.concatenate([level[chosen] for level in levels[:depth]], axis=1)[:, post_order(depth)]
        places = trees["node"][chosen, None] + np.arange(2**depth - 1)
        tops["column"][places] = codes.column[at]
        tops["threshold"][places] = codes.threshold[at].view(np.uint8).astype(np.uint32) * 0x01010101
        exits[trees["leaf"][chosen, None] + np.arange(2**depth)] = levels[depth][chosen]
    deep = np.zeros(len(inner) if trees["deep"].any() else 0, DEEP)
    if len(deep):
        deep["left"], deep["right"], deep["value"] = nodes.left, nodes.right, nodes.value
        deep["column"], deep["threshold"] = codes.column, codes.threshold
    return Layout(
        tops,
        nodes.value[exits],
        np.where(inner[exits], exits, -1).astype(np.int32),
        deep,
        trees,
        nodes.ends.astype(np.int64),
        nodes.bases,
        codes.features,
        codes.keys,
        codes.columns,
    )

"""Merkle trees over hashes: their roots, the paths that prove one leaf, and trees that grow.

A node is SHA-256 of a byte 1 and its children, in order. Each level joins the hashes of the level
below by `fan`, the last node taking what is left; a hash that is left alone goes up as it is. With
a fan of 2 that is the tree of RFC 9162, section 2.1, whose leaves are the given hashes: what they
are hashed from begins with a tag of its own, never with a byte 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

NODE = b"\x01"
HASH_BYTES = 32
EMPTY = sha256().digest()
"""The root over nothing, as in RFC 9162."""


def root(leaves: bytes, fan: int = 2) -> bytes:
    """Return the 32 bytes of the root over leaves of 32 bytes each."""
    level, width = leaves, fan * HASH_BYTES
    while len(level) > HASH_BYTES:
        level = _next_level(level, width)
    return level or EMPTY


def path(leaves: bytes, index: int, fan: int = 2) -> list[bytes]:
    """Return the hashes that lead from the leaf at `index` (from 0) to the root, lowest first.

    They are the other children of each node on the way up, each node's in order.
    """
    level, width, found = leaves, fan * HASH_BYTES, list[bytes]()
    while len(level) > HASH_BYTES:
        start = index // fan * width
        group = level[start : start + width]
        hashes = [group[at : at + HASH_BYTES] for at in range(0, len(group), HASH_BYTES)]
        found += hashes[: index % fan] + hashes[index % fan + 1 :]
        level = _next_level(level, width)
        index //= fan
    return found


def climb(leaf: bytes, index: int, count: int, steps: Sequence[bytes], fan: int = 2) -> bytes:
    """Return the root over `count` leaves to which a path leads from the leaf at `index`.

    Raise ValueError for a path that fits no such tree.
    """
    if not 0 <= index < count:
        raise ValueError(f"a tree of {count} leaves has none at {index}")
    left, node = list(steps), leaf
    while count > 1:
        others = min(fan, count - index // fan * fan) - 1
        siblings, left = left[:others], left[others:]
        if len(siblings) < others or any(len(each) != HASH_BYTES for each in siblings):
            raise ValueError("the path is too short")
        siblings.insert(index % fan, node)
        node = _join(b"".join(siblings))
        index, count = index // fan, -(-count // fan)
    if left:
        raise ValueError("the path is too long")
    return node


def grow(peaks: bytes, count: int, leaf: bytes) -> bytes:
    """Return the peaks of a binary tree of `count` leaves after one more.

    Peaks are the roots of the whole trees that it consists of, the largest first: one for each 1 in
    the binary number `count`.
    """
    while count & 1:
        leaf = _join(peaks[-HASH_BYTES:] + leaf)
        peaks, count = peaks[:-HASH_BYTES], count >> 1
    return peaks + leaf


def join_peaks(peaks: bytes) -> bytes:
    """Return the root of the tree that has these peaks."""
    if not peaks:
        return EMPTY
    node = peaks[-HASH_BYTES:]
    for at in range(len(peaks) - 2 * HASH_BYTES, -1, -HASH_BYTES):
        node = _join(peaks[at : at + HASH_BYTES] + node)
    return node


def _next_level(level: bytes, width: int) -> bytes:
    # Without a call of `_join` for each node: this is what every seal costs.
    whole = len(level) - len(level) % width
    nodes = [sha256(NODE + level[at : at + width]).digest() for at in range(0, whole, width)]
    if whole < len(level):
        nodes.append(_join(level[whole:]))
    return b"".join(nodes)


def _join(children: bytes) -> bytes:
    return children if len(children) == HASH_BYTES else sha256(NODE + children).digest()

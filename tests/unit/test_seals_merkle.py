"""Trees over hashes: their roots and paths are those of RFC 9162, and no path proves two leaves."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.seals.merkle import EMPTY, HASH_BYTES, climb, grow, join_peaks, path, root

SIZES = st.integers(1, 70)
FANS = st.sampled_from([2, 3, 16])


def leaves_of(count: int) -> list[bytes]:
    return [sha256(bytes([number])).digest() for number in range(count)]


def as_in_rfc_9162(leaves: list[bytes]) -> bytes:
    """MTH of section 2.1.1, word for word, over leaves that are hashed already."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\x01" + as_in_rfc_9162(leaves[:k]) + as_in_rfc_9162(leaves[k:])).digest()


@given(st.integers(0, 70))
def test_a_binary_tree_is_that_of_rfc_9162(count: int) -> None:
    leaves = leaves_of(count)
    assert root(b"".join(leaves)) == as_in_rfc_9162(leaves)


@given(st.integers(0, 70))
def test_a_tree_that_grows_has_the_same_root(count: int) -> None:
    peaks = b""
    for number, leaf in enumerate(leaves_of(count)):
        peaks = grow(peaks, number, leaf)
    assert len(peaks) == count.bit_count() * HASH_BYTES
    assert join_peaks(peaks) == root(b"".join(leaves_of(count)))
    assert count > 0 or join_peaks(peaks) == EMPTY


@given(SIZES, FANS, st.data())
def test_a_path_leads_to_the_root_from_its_own_leaf_alone(
    count: int, fan: int, data: st.DataObject
) -> None:
    leaves = leaves_of(count)
    whole, top = b"".join(leaves), root(b"".join(leaves), fan)
    index = data.draw(st.integers(0, count - 1))
    steps = path(whole, index, fan)
    assert climb(leaves[index], index, count, steps, fan) == top
    assert climb(sha256(b"forged").digest(), index, count, steps, fan) != top
    other = data.draw(st.integers(0, count - 1).filter(lambda at: at != index) if count > 1
                      else st.just(index))  # fmt: skip
    if other != index:
        try:
            assert climb(leaves[index], other, count, steps, fan) != top
        except ValueError:
            assert len(path(whole, other, fan)) != len(steps)


@given(SIZES, FANS, st.data())
def test_a_path_that_was_tampered_with_leads_elsewhere(
    count: int, fan: int, data: st.DataObject
) -> None:
    leaves = leaves_of(count)
    index = data.draw(st.integers(0, count - 1))
    steps, top = path(b"".join(leaves), index, fan), root(b"".join(leaves), fan)
    for at, step in enumerate(steps):
        wrong = [*steps[:at], bytes([step[0] ^ 1]) + step[1:], *steps[at + 1 :]]
        assert climb(leaves[index], index, count, wrong, fan) != top
    with pytest.raises(ValueError, match="too long"):
        climb(leaves[index], index, count, [*steps, bytes(32)], fan)
    if steps:
        with pytest.raises(ValueError, match="too short"):
            climb(leaves[index], index, count, steps[:-1], fan)


def test_what_a_tree_does_not_hold_has_no_path() -> None:
    with pytest.raises(ValueError, match="has none at 3"):
        climb(bytes(32), 3, 3, [])

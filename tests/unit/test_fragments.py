"""Which fragments of a part count, and what their names say."""

from __future__ import annotations

import pytest

from infra.objects.fragments import Fragment, covering


@pytest.mark.parametrize(
    ("fragments", "chosen"),
    [
        ([], []),
        ([(1, 0, 4), (1, 4, 3)], [(1, 0, 4), (1, 4, 3)]),
        ([(1, 4, 3), (1, 0, 4)], [(1, 0, 4), (1, 4, 3)]),
        # There is a hole: what comes behind it is of no use yet.
        ([(1, 0, 4), (1, 5, 3)], [(1, 0, 4)]),
        ([(1, 1, 4)], []),
        # Two requests raced: the longer one counts.
        ([(1, 0, 4), (1, 4, 1), (1, 4, 9)], [(1, 0, 4), (1, 4, 9)]),
        # They were made one while another request went on from their end.
        ([(1, 0, 6), (1, 4, 9)], [(1, 0, 6), (1, 4, 9)]),
        ([(1, 0, 8), (1, 2, 3)], [(1, 0, 8)]),
        # Of another part.
        ([(2, 0, 4)], []),
    ],
)
def test_fragments_cover_a_part_from_its_beginning(
    fragments: list[tuple[int, int, int]], chosen: list[tuple[int, int, int]]
) -> None:
    assert covering([Fragment(*each) for each in fragments], 1) == chosen


@pytest.mark.parametrize("name", ["", "1-2", "1-2-3-4", "-1-2-3", "1-2-x", "../1-2-3", "1-2-3\n"])
def test_other_names_are_no_fragments(name: str) -> None:
    assert Fragment.named(name) is None
    assert Fragment.named(Fragment(10_000, 5, 7).name) == Fragment(10_000, 5, 7)

"""The tree of cause and effect, whatever the log says of causes."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from engine.inspection.streams import MAX_DEPTH, Node, Trace, tree
from engine.log import event_id
from engine.payload_mode import PayloadMode
from readapi.audit.inspector import as_trace
from tests.unit.audit_events import AT, entry

Shape = dict[int, "Shape"]


def own_id(position: int) -> str:
    return str(event_id(UUID(int=position), 1))


def shape(node: Node) -> Shape:
    """Positions within positions."""
    return {child.entry.stored.position: shape(child) for child in node.children if child.entry}


def notes(node: Node) -> list[str]:
    found = [node.note] if node.note else []
    return [*found, *(note for child in node.children for note in notes(child))]


def drawn(causes: Sequence[tuple[int, str | None]]) -> Node:
    return tree("request", [entry(position, "request", cause) for position, cause in causes])


def test_events_hang_under_what_caused_them() -> None:
    root = drawn([(3, "request"), (5, own_id(3)), (6, "request"), (9, own_id(5)), (10, own_id(3))])
    assert shape(root) == {3: {5: {9: {}}, 10: {}}, 6: {}}
    assert (root.kind, root.id, notes(root)) == ("request", "request", [])
    assert root.at is not None
    assert root.at > AT


def test_a_cause_that_is_not_there_is_told() -> None:
    root = drawn([(3, own_id(77)), (5, None), (6, own_id(3))])
    assert shape(root) == {3: {6: {}}, 5: {}}
    assert notes(root) == [
        f"its cause {own_id(77)} is not before it in this trace",
        "it names no cause",
    ]


def test_nothing_goes_in_a_circle() -> None:
    root = drawn([(1, own_id(1)), (3, own_id(5)), (5, own_id(3)), (7, own_id(9)), (9, own_id(7))])
    assert shape(root) == {1: {}, 3: {5: {}}, 7: {9: {}}}
    assert len(notes(root)) == 3


def test_a_chain_is_drawn_as_deep_as_programs_parse() -> None:
    chain = [(1, "request"), *((at, own_id(at - 1)) for at in range(2, 1001))]
    root = drawn(chain)

    def depth(node: Node) -> int:
        return 1 + max(map(depth, node.children), default=0)

    assert depth(root) == MAX_DEPTH + 1
    assert len(notes(root)) == (1000 - 1) // MAX_DEPTH
    told = as_trace("request", Trace(root, 1000, truncated=False), PayloadMode.FULL)
    assert told.to_json().count(b'"kind":"event"') == 1000


def test_two_events_that_claim_the_same_place_are_both_drawn() -> None:
    twice = [entry(3, "request", "request"), entry(3, "request", "request")]
    assert len(tree("request", twice).children) == 2

"""The seal chain's format is fixed for good, and a check on it names what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.seals.chain import (
    FORMAT,
    NO_SEAL,
    Seal,
    StoredRow,
    leaf,
    old_seal_hash,
    peaks_after,
    seal_hash,
)
from engine.seals.check import Check
from engine.seals.proofs import Proofs
from engine.seals.report import UNANCHORED, UNSIGNED, FaultKind
from tests.unit.sealed_logs import (
    AT,
    KEY,
    STREAM,
    anchored,
    chain_over,
    checked,
    fault_of,
    hashed,
    log_of,
    named,
)

LEAF_OF_ROW = "e8d763cec7ee4b6737c806e6c40d4f85619c444fadf7768809ffc9b3f916a864"
LEAF_OF_NULLS = "8ed0a525b2b1778b8f2d03c27849bc71e9b4082cd64402c7e0453d148f2b3ffc"
OLD_SEAL_OF_ZEROS = "0f12294b8ed9531682091dc264bc7dd360b44c600a7b95d0eef77e202910300c"
SEAL_OF_ZEROS = "9266e055a128bfb8666fd741709f88cadc43bb55db561f5a27a9b4aa50a3de24"
THIRD_SEAL = "a0c93cce5d210f0dc203c9fbb6e534d85df25339b6e4798bc47823b8f25f2e17"


def test_the_format_of_a_leaf_never_changes() -> None:
    row = StoredRow(7, STREAM, 3, "video_likes.liked.v1", '{"é":1}'.encode())
    assert leaf(row).hex() == LEAF_OF_ROW
    assert leaf(row._replace(topic=None, state=None)).hex() == LEAF_OF_NULLS


def test_the_formats_of_a_seal_never_change() -> None:
    assert old_seal_hash(NO_SEAL, 1, 2, bytes(64)).hex() == OLD_SEAL_OF_ZEROS
    zeros = Seal(1, 1, 2, bytes(64), b"", NO_SEAL, None, None, AT, FORMAT, b"")
    assert seal_hash(zeros).hex() == SEAL_OF_ZEROS
    third = replace(zeros, number=3, key_id="0123456789abcdef", peaks=bytes(32))
    assert seal_hash(third).hex() == THIRD_SEAL


@pytest.mark.parametrize(
    "change",
    [
        {"number": 3},
        {"first": 5},
        {"last": 11},
        {"leaves": bytes(160)},
        {"previous": bytes(32)},
        {"key_id": "0123456789abcdef"},
        {"sealed_at": AT + timedelta(microseconds=1)},
        {"peaks": bytes(32)},
        {"format": 1},
    ],
    ids=str,
)
def test_everything_that_is_shown_of_a_seal_is_hashed(change: dict[str, object]) -> None:
    seal = chain_over(log_of(15))[1]
    assert seal_hash(replace(seal, **change)) != seal.hash  # type: ignore[arg-type]


def test_seals_of_the_former_format_stay_verifiable() -> None:
    rows = log_of(20)
    for old in range(5):
        seals = chain_over(rows, old=old)
        assert [seal.format for seal in seals] == [1] * old + [2] * (4 - old)
        assert checked(rows, seals).ok
        assert seals[3].peaks is None or seals[3].peaks == peaks_after(
            seals[2], [seal.hash for seal in seals[:3]]
        )
        assert checked(rows[5:], seals[1:], Check(first=6, until=20)).ok
        assert checked(rows[10:], seals[2:], Check(first=11, previous=seals[1])).ok


@pytest.mark.parametrize("old", [0, 2])
def test_a_seal_that_commits_to_other_seals_is_named(old: int) -> None:
    rows, seals = log_of(20), chain_over(log_of(20), old=old)
    seals[3] = hashed(replace(seals[3], peaks=bytes(64)))
    fault = fault_of(rows, seals)
    assert named(fault) == ("seal-altered", 16, None, None, 4)
    assert "does not commit to the seals before it" in fault.detail


def test_a_format_of_a_later_release_is_told() -> None:
    rows, seals = log_of(5), chain_over(log_of(5))
    fault = fault_of(rows, [replace(seals[0], format=3)])
    assert "format 3 of seals is not known here" in fault.detail


@given(st.text(max_size=20), st.binary(max_size=20), st.text(max_size=20), st.binary(max_size=20))
def test_no_two_events_have_the_same_leaf(
    topic: str, state: bytes, other_topic: str, other_state: bytes
) -> None:
    row = StoredRow(1, STREAM, 1, topic, state)
    other = StoredRow(1, STREAM, 1, other_topic, other_state)
    assert (leaf(row) == leaf(other)) == (row == other)


def test_absent_and_empty_are_different_things() -> None:
    row = StoredRow(1, STREAM, 1, "", b"")
    different = [row, row._replace(topic=None), row._replace(state=None)]
    assert len({leaf(each) for each in different}) == 3


def test_a_whole_log_is_proved_but_for_what_is_not_sealed() -> None:
    rows = log_of(13)
    report = checked(rows, chain_over(rows[:10]))
    assert report.as_dict() == {
        "caveats": [asdict(UNSIGNED), asdict(UNANCHORED)],
        "ok": True,
        "from": 1,
        "events": 13,
        "sealedTo": 10,
        "seals": 2,
        "signed": 0,
        "anchored": 0,
        "timestamped": 0,
        "unsealed": 3,
    }


def test_what_a_result_can_not_prove_is_said() -> None:
    def caveats(seals: Sequence[Seal], proofs: Proofs) -> list[str]:
        report = checked(log_of(10), seals, Check(proofs=proofs))
        return [caveat.kind for caveat in report.caveats]

    signed = chain_over(log_of(10), KEY)
    assert caveats(signed, Proofs()) == ["unchecked", "unanchored"]
    assert caveats(signed, Proofs(KEY.public)) == ["unanchored"]
    assert caveats(signed, replace(anchored(*signed), public_keys=KEY.public)) == []
    assert caveats(chain_over(log_of(10), old=1), Proofs()) == [
        "unsigned",
        "unanchored",
        "old-format",
    ]


def test_an_empty_log_is_whole() -> None:
    assert checked([], []).ok


def test_an_altered_event_is_named_with_all_that_is_known() -> None:
    rows, seals = log_of(10), chain_over(log_of(10))
    rows[6] = rows[6]._replace(state=b"state 8")
    report = checked(rows, seals)
    assert report.as_dict()["fault"] == {
        "kind": "altered",
        "position": 7,
        "streamId": str(STREAM),
        "version": 7,
        "seal": 2,
        "detail": "the event at position 7 is not the one that was sealed",
    }
    assert (report.events, report.seals, report.sealed_to) == (10, 2, 10)


def test_events_that_changed_places_are_told_apart_from_altered_ones() -> None:
    rows, seals = log_of(10), chain_over(log_of(10))
    rows[6], rows[8] = rows[8]._replace(position=7), rows[6]._replace(position=9)
    fault = fault_of(rows, seals)
    assert named(fault) == ("altered", 7, STREAM, 9, 2)
    assert "sealed at position 9" in fault.detail


@pytest.mark.parametrize("position", [1, 5, 6, 10])
def test_a_removed_event_is_missing(position: int) -> None:
    rows, seals = log_of(10), chain_over(log_of(10))
    del rows[position - 1]
    assert named(fault_of(rows, seals)) == ("missing", position, None, None, (position + 4) // 5)


def test_all_events_of_the_last_block_are_missing() -> None:
    rows, seals = log_of(10), chain_over(log_of(10))
    fault = fault_of(rows[:5], seals)
    assert named(fault) == ("missing", 6, None, None, 2)
    assert "up to 10" in fault.detail


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_of_two_events_at_one_position_the_strange_one_was_added(first: bool) -> None:
    rows, seals = log_of(10), chain_over(log_of(10))
    stranger = StoredRow(4, UUID(int=9), 1, "test.v1", b"")
    rows.insert(3 if first else 4, stranger)
    assert named(fault_of(rows, seals)) == ("added", 4, UUID(int=9), 1, 1)


@pytest.mark.parametrize("position", [0, -5])
def test_an_event_before_the_first_position_was_added(position: int) -> None:
    rows, seals = log_of(10), chain_over(log_of(10))
    rows.insert(0, StoredRow(position, STREAM, 99, "test.v1", b""))
    assert named(fault_of(rows, seals))[:4] == ("added", position, STREAM, 99)


def test_a_lone_event_far_behind_the_end_was_added() -> None:
    rows, seals = log_of(12), chain_over(log_of(10))
    rows.append(StoredRow(1_000, STREAM, 13, "test.v1", b""))
    assert named(fault_of(rows, seals)) == ("added", 1_000, STREAM, 13, None)


def test_a_hole_among_unsealed_events_is_a_missing_event() -> None:
    rows, seals = log_of(15), chain_over(log_of(10))
    del rows[11]
    assert named(fault_of(rows, seals))[:2] == ("missing", 12)


def test_a_second_unsealed_event_at_a_position_was_added() -> None:
    rows, seals = log_of(12), chain_over(log_of(10))
    rows.append(StoredRow(12, UUID(int=9), 1, "test.v1", b""))
    assert named(fault_of(rows, seals)) == ("added", 12, UUID(int=9), 1, None)


def test_an_unsealed_event_that_nobody_could_have_written_was_added() -> None:
    rows, seals = log_of(12), chain_over(log_of(10))
    rows[10] = rows[10]._replace(topic="forged.v1")
    assert named(fault_of(rows, seals)) == ("added", 11, STREAM, 11, None)


def test_a_log_that_ends_before_it_should_is_missing_the_rest() -> None:
    rows = log_of(10)
    check = Check(until=12)
    assert named(fault_of(rows, chain_over(rows), check))[:2] == ("missing", 11)


def test_a_part_of_a_log_is_checked_from_where_it_begins() -> None:
    rows, seals = log_of(20), chain_over(log_of(20))
    part, their_seals = rows[7:17], seals[1:]
    assert checked(part, their_seals, Check(first=8, until=17)).ok
    part[4] = part[4]._replace(version=99)
    fault = fault_of(part, their_seals, Check(first=8, until=17))
    assert named(fault) == ("altered", 12, STREAM, 99, 3)


def test_after_a_seal_that_was_checked_before_only_the_rest_is_read() -> None:
    rows, seals = log_of(20), chain_over(log_of(20))
    again = Check(first=11, previous=seals[1])
    assert checked(rows[10:], seals[2:], again).ok
    forged = Check(first=11, previous=replace(seals[1], hash=bytes(32)))
    assert named(fault_of(rows[10:], seals[2:], forged))[0] == "seal-missing"


@pytest.mark.parametrize(
    "change",
    [
        {"sealed_at": AT + timedelta(days=1)},
        {"hash": bytes(32)},
        {"leaves": bytes(160)},
        {"leaves": b""},
        {"last": 9},
        {"last": 11},
    ],
    ids=str,
)
def test_an_altered_seal_is_named(change: dict[str, object]) -> None:
    rows, seals = log_of(15), chain_over(log_of(15))
    seals[1] = replace(seals[1], **change)  # type: ignore[arg-type]
    assert named(fault_of(rows, seals)) == ("seal-altered", 6, None, None, 2)


@pytest.mark.parametrize("number", [1, 2])
def test_a_removed_seal_is_named(number: int) -> None:
    rows, seals = log_of(15), chain_over(log_of(15))
    del seals[number - 1]
    assert named(fault_of(rows, seals))[0::4] == ("seal-missing", number)


def test_a_seal_of_another_chain_is_named() -> None:
    rows = log_of(15)
    seals, others = chain_over(rows), chain_over([*log_of(4), rows[0], *rows[5:]])
    seals[1] = others[1]
    assert named(fault_of(rows, seals))[0::4] == ("seal-missing", 2)


def test_kinds_are_what_the_contract_calls_them() -> None:
    assert [kind.value for kind in FaultKind] == [
        "altered",
        "missing",
        "added",
        "seal-altered",
        "seal-missing",
        "signature-invalid",
        "anchor-differs",
        "timestamp-invalid",
        "head-differs",
        "link-differs",
    ]


def test_a_first_seal_may_follow_the_last_one_of_another_log() -> None:
    rows, other = log_of(8), bytes(range(32))
    first, second = chain_over(rows)
    linked = hashed(replace(first, previous=other))
    after = hashed(
        replace(second, previous=linked.hash, peaks=peaks_after(linked)),
    )
    report = checked(rows, [linked, after])
    assert (report.fault, report.follows) == (None, other)
    assert checked(rows, [first, second]).follows is None
    # Nothing recorded such a link in the format of before.
    old = hashed(replace(chain_over(rows, old=2)[0], previous=other))
    assert fault_of(rows, [old]).kind is FaultKind.SEAL_MISSING

"""Lines of an export keep every byte, and a file that was cut off is continued."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID, uuid5

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.archive.lines import (
    ExportFormat,
    Plan,
    cloud_event_line,
    event_line,
    header_line,
    plan_from_json,
    row_of,
    seal_line,
    seal_of,
)
from engine.archive.transfer import LineWriter
from engine.archive.verification import ExportUnusable, TailStreams, read_header, read_items
from engine.log import event_id
from engine.payload_mode import PayloadMode
from engine.seals.chain import Seal, StoredRow
from engine.seals.places import cut_torn_line
from tests.unit.sealed_logs import KEY, STREAM, chain_over, log_of

FULL, MASKED, NONE = PayloadMode.FULL, PayloadMode.MASKED, PayloadMode.NONE
STATE = (
    b'{"timestamp":"2026-11-01T12:00:00+00:00","actor":"alice","correlation_id":"c1",'
    b'"causation_id":"c2","video_id":"v","content":"Hola"}'
)
LIKED = StoredRow(7, STREAM, 3, "comment.posted.v1", STATE)


def plan(export_format: ExportFormat = ExportFormat.JSONL, **changes: int) -> Plan:
    numbers = {"first": 1, "last": 20, "first_seal": 1, "last_seal": 4, **changes}
    return Plan(export_format, FULL, **numbers)


rows = st.builds(
    StoredRow,
    st.integers(-(2**63), 2**63 - 1),
    st.uuids(),
    st.integers(-(2**63), 2**63 - 1),
    st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    st.none() | st.binary() | st.text(st.characters(exclude_categories=["Cs"])).map(str.encode),
)


@given(rows)
def test_an_event_comes_back_byte_by_byte(row: StoredRow) -> None:
    line = event_line(row, FULL)
    assert line.count(b"\n") == 1
    assert row_of(orjson.loads(line)) == row


def test_a_seal_comes_back_byte_by_byte() -> None:
    for seal in chain_over(log_of(7), KEY) + chain_over(log_of(7), old=1):
        assert seal_of(orjson.loads(seal_line(seal))["seal"]) == seal


def test_an_event_is_told_in_full() -> None:
    assert orjson.loads(event_line(LIKED, FULL)) == {
        "position": 7,
        "streamId": str(STREAM),
        "version": 3,
        "topic": "comment.posted.v1",
        "recordedAt": "2026-11-01T12:00:00+00:00",
        "actor": "alice",
        "correlationId": "c1",
        "causationId": "c2",
        "payload": {"video_id": "v", "content": "Hola"},
        "state": STATE.decode(),
    }


@pytest.mark.parametrize("mode", [MASKED, NONE])
@pytest.mark.parametrize("line", [event_line, cloud_event_line])
def test_no_value_is_told_in_the_other_modes(mode: PayloadMode, line: object) -> None:
    assert callable(line)
    told = line(LIKED, mode)
    assert b"Hola" not in told
    assert b"alice" not in told
    assert b"state" not in told
    assert (b"content" in told) == (mode is MASKED)


def test_an_event_as_a_cloud_event() -> None:
    assert orjson.loads(cloud_event_line(LIKED, FULL)) == {
        "specversion": "1.0",
        "id": str(uuid5(STREAM, "3")),
        "source": "/backlot",
        "type": "comment.posted.v1",
        "time": "2026-11-01T12:00:00+00:00",
        "subject": str(STREAM),
        "datacontenttype": "application/json",
        "position": "7",
        "streamversion": "3",
        "actor": "alice",
        "correlationid": "c1",
        "causationid": "c2",
        "data": {"video_id": "v", "content": "Hola"},
    }
    assert event_id(STREAM, 3) == uuid5(STREAM, "3")


@pytest.mark.parametrize("state", [b"\xff\xfe", b"[1]", b"", None, b"{"])
def test_a_state_that_is_no_json_object_is_told_as_it_is(state: bytes | None) -> None:
    row = LIKED._replace(state=state)
    told = orjson.loads(event_line(row, FULL))
    assert told["payload"] is None
    assert row_of(told) == row
    assert "data" not in orjson.loads(cloud_event_line(row, FULL))


def test_a_plan_comes_back() -> None:
    assert plan_from_json(plan().to_json()) == plan()


def write(path: Path, plan: Plan, upto: int) -> None:
    writer = LineWriter(path, plan)
    start = writer.resume()
    items: list[Seal | StoredRow] = []
    seals = {seal.first: seal for seal in chain_over(log_of(20))}
    for row in log_of(upto)[start - 1 :]:
        if plan.provable and row.position in seals:
            items.append(seals[row.position])
        items.append(row)
    writer.write(items)
    writer.finish()
    writer.close()


@pytest.mark.parametrize("export_format", [ExportFormat.JSONL, ExportFormat.CLOUDEVENTS])
def test_a_file_cut_off_anywhere_is_continued_to_the_same_file(
    tmp_path: Path, export_format: ExportFormat
) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    write(whole, plan(export_format), 20)
    content = whole.read_bytes()
    for length in range(0, len(content) + 1, 37):
        torn.write_bytes(content[:length])
        write(torn, plan(export_format), 20)
        assert torn.read_bytes() == content, length


def test_the_last_whole_line_is_found_however_long_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    long = b"x" * 300_000
    path.write_bytes(b"first\n" + long + b"\n" + long)
    with path.open("r+b") as file:
        assert cut_torn_line(file) == (6, long + b"\n")
    assert path.stat().st_size == 6 + 300_001
    path.write_bytes(long)
    with path.open("r+b") as file:
        assert cut_torn_line(file) is None
    assert path.stat().st_size == 0


def test_a_file_says_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, plan(), 20)
    header = read_header(path)
    assert (header.first, header.last, header.first_seal, header.last_seal) == (1, 20, 1, 4)
    items = list(read_items(path))
    assert [item for item in items if isinstance(item, StoredRow)] == log_of(20)
    assert [item for item in items if isinstance(item, Seal)] == chain_over(log_of(20))


@pytest.mark.parametrize(
    ("first_line", "why"),
    [
        (b"", "no export"),
        (b"{}\n", "no export"),
        (b"[1]\n", "no export"),
        (b"\x00\n", "no export"),
        (cloud_event_line(LIKED, FULL), "no export"),
        (header_line(plan()).replace(b'Export":1', b'Export":2'), "format 2"),
        (header_line(Plan(ExportFormat.JSONL, MASKED, 1, 2, 0, 0)), "--payload masked"),
        (header_line(plan()).replace(b'"lastSeal"', b'"other"'), "damaged"),
    ],
)
def test_what_can_not_be_verified_is_refused(tmp_path: Path, first_line: bytes, why: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(first_line)
    with pytest.raises(ExportUnusable, match=why):
        read_header(path)


def orphan_of(tail: list[StoredRow], log: list[StoredRow], *, partial: bool = False) -> int | None:
    streams = TailStreams()
    for row in tail:
        streams.take(row)
    fault = streams.orphan([*log, *tail], partial=partial)
    return None if fault is None else fault.position


def test_an_unsealed_event_has_to_continue_its_stream() -> None:
    log, other = log_of(5), UUID(int=1)
    whole = [StoredRow(6, STREAM, 6, None, None), StoredRow(7, other, 1, None, None)]
    assert orphan_of(whole, log) is None
    assert orphan_of([whole[0]._replace(version=7), whole[1]], log) == 6
    assert orphan_of([whole[0], whole[1]._replace(version=2)], log) == 7
    assert orphan_of([whole[0], whole[1]._replace(version=2)], log, partial=True) is None
    again = [*whole, StoredRow(8, other, 3, None, None)]
    assert orphan_of(again, log) == 8

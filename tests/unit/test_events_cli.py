"""`backlot events` in the terminal: lines that fit, times that are read, one line per mistake."""

from __future__ import annotations

import sys
from pathlib import Path
from uuid import UUID

import pytest

from backlot.cli import main
from backlot.events.commands import (
    day_of,
    detail_lines,
    event_lines,
    state_lines,
    stats_lines,
    step_lines,
    trace_lines,
)
from backlot.output import printable
from engine.inspection.streams import Fold, Surroundings, Trace, read_entry, tree
from engine.payload_mode import PayloadMode
from readapi.audit.inspector import (
    AuditEvent,
    AuditStats,
    StreamEvent,
    TopicCount,
    as_detail,
    as_event,
    as_state,
    as_step,
    as_trace,
)
from tests.unit.audit_events import AT, TOPICS, entry, golden

WIDTH, NARROW = 102, 40
ESCAPE = "\x1b]0;owned\x07\x9b31m"
STATS = AuditStats(
    head=7,
    indexed=5,
    events=7,
    streams=2,
    unreadable=1,
    first_at=AT,
    last_at=AT,
    state_bytes=1_500_000,
    table_bytes=2_000_000,
    index_bytes=3_000_000,
    audit_bytes=4_000_000,
    topics=[TopicCount(topic="odd.v1", type="odd", aggregate="odd", events=7)],
    aggregates=[],
    days=[],
)


@pytest.mark.parametrize("topic", TOPICS)
def test_a_line_holds_every_event(topic: str) -> None:
    event = as_event(read_entry(golden(topic)), PayloadMode.FULL)
    (line,) = event_lines(event, WIDTH)
    assert event.type in line
    assert str(event.stream_id) in line
    narrow = list(event_lines(event, NARROW))
    assert max(map(len, narrow)) <= NARROW
    assert " ".join(" ".join(narrow).split()) == " ".join(line.split())
    assert day_of(event) == "2026-11-22"


def odd() -> AuditEvent:
    return AuditEvent(
        position=12_345_678,
        id=UUID(int=1),
        stream_id=UUID(int=2),
        version=3,
        topic=ESCAPE * 20,
        type=ESCAPE * 20,
        aggregate=ESCAPE,
        actor=ESCAPE * 9,
        payload_mode=PayloadMode.FULL,
        error=ESCAPE,
    )


def test_what_nobody_can_read_is_shown_whole_and_commands_no_terminal() -> None:
    lines = list(event_lines(odd(), WIDTH))
    assert all(line.isprintable() for line in lines)
    shown = " ".join(" ".join(lines).split())
    assert f"! {printable(ESCAPE * 20)} {printable(ESCAPE * 9)} " in shown
    assert day_of(odd()) == "unknown day"


def test_nothing_recorded_reaches_the_terminal_as_a_command() -> None:
    hostile = entry(3, ESCAPE, ESCAPE)
    stored = hostile.stored._replace(
        topic="comment.posted.v1",
        state=golden("comment.posted.v1").state.replace(b"bonito", b"\\u001b]0;x\\u0007\xc2\x9b"),
    )
    read = read_entry(stored)
    fold = Fold(stored.stream_id)
    step = as_step(fold.add(read), PayloadMode.FULL)
    around = Surroundings(stored, None, None, [stored._replace(topic=ESCAPE)])
    lines = [
        *step_lines(step),
        *state_lines(as_state(fold, PayloadMode.FULL)),
        *detail_lines(as_detail(read, around, PayloadMode.FULL)),
        *trace_lines(as_trace(ESCAPE, Trace(tree(ESCAPE, [hostile]), 1, True), PayloadMode.FULL)),
    ]
    assert all(line.isprintable() for line in lines)


def test_a_stream_tells_its_changes() -> None:
    stored = golden("comment.posted.v1")
    fold = Fold(stored.stream_id)
    step = fold.add(read_entry(stored))
    lines = list(step_lines(as_step(step, PayloadMode.FULL)))
    assert lines[0].startswith(f"v1  {stored.position}  2026-11-22T09:30:15Z  comment.posted  ann")
    assert "    revision: null → 1" in lines
    state = list(state_lines(as_state(fold, PayloadMode.FULL)))
    assert state[0] == f"comment {stored.stream_id}, version 1"
    assert '  author: "ann"' in state


def test_a_tree_is_drawn() -> None:
    root = tree("request", [entry(3, "request", "request"), entry(5, "request", "lost")])
    trace = as_trace("request", Trace(root, 2, truncated=True), PayloadMode.FULL)
    assert list(trace_lines(trace)) == [
        "request request  2026-11-22T09:30:03Z",
        "├── 3  comment.deleted.v1  2026-11-22T09:30:03Z  ann",
        "└── 5  comment.deleted.v1  2026-11-22T09:30:05Z  ann",
        "    (its cause lost is not before it in this trace)",
        "only the first 2 events are shown: `events list --correlation` has all",
    ]


def test_counts_say_what_is_behind_and_what_is_unreadable() -> None:
    text = "\n".join(stats_lines(STATS))
    assert "7 events in 2 streams, up to position 7" in text
    assert "contents 1.5 MB, table 2.0 MB, its indexes 3.0 MB, the audit's index 4.0 MB" in text
    assert "1 events tell no time" in text
    assert "the audit's index is 2 events behind" in text


def test_of_an_edited_text_the_part_that_changed_is_told() -> None:
    before, after = "Before. " * 40, " And after." * 40
    step = StreamEvent.model_validate(
        {
            **as_event(read_entry(golden("comment.edited.v1")), PayloadMode.FULL).model_dump(),
            "changed": {"content": {"from": f"{before}old{after}", "to": f"{before}new{after}"}},
        }
    )
    lines = list(step_lines(step, 80))
    assert lines[1:] == [
        "    content:",
        '      - "…re. Before. Before. old And after. And afte…"',
        '      + "…re. Before. Before. new And after. And afte…"',
    ]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["list"], "start `make up` first"),
        (["tail", "-f"], "start `make up` first"),
        (["stats"], "start `make up` first"),
        (["list", "--from", "soon"], "--from: 'soon' is not a time"),
        (["list", "--stream", "x"], "--stream"),
        (["list", "--limit", "1001"], "--limit"),
        (["list", "--payload", "some"], "--payload"),
        (["show", "0"], "position"),
        (["state", "x"], "x"),
        (["state", str(UUID(int=1)), "--at-time", "x"], "--at-time: 'x' is not a time"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str],
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BACKLOT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "argv", ["backlot", "events", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code not in (0, None)
    assert out == ""
    assert err.startswith("backlot: ")
    assert err.count("\n") == 1
    assert why in err

"""Cause and effect: what stands around one event, and the tree of everything a request led to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, LiteralString, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from engine.event_store import EVENTS
from engine.inspection.index import Audit
from engine.inspection.search import PLANNING, Search, find
from engine.inspection.streams import Entry, read_entry
from engine.log import READ_ONE, Stored, event_id

MAX_TRACED = 1_000
MAX_EFFECTS = 100
# A tree that is deeper than any program draws or parses is no longer drawn as one.
MAX_DEPTH = 50

COLUMNS: LiteralString = "SELECT notification_id, originator_id, originator_version, topic, state "
IN_STREAM: LiteralString = f"FROM {EVENTS} WHERE originator_id = %s AND "
BEFORE: LiteralString = "originator_version < %s ORDER BY originator_version DESC LIMIT 1"
AFTER: LiteralString = "originator_version > %s ORDER BY originator_version LIMIT 1"
CAUSED: LiteralString = (
    "WITH indexed AS (SELECT coalesce(max(position), 0) AS position "
    "FROM backlot_checkpoints WHERE kind = 'projection' AND subscription = %(schema)s), "
    "found AS ("
    "(SELECT position FROM {schema}.events WHERE causation_id = %(cause)s "
    "ORDER BY position LIMIT %(limit)s) UNION ALL "
    f"(SELECT notification_id FROM {EVENTS} AS b "
    "LEFT JOIN LATERAL {schema}.read(b.state) AS f ON true "
    "WHERE notification_id > (SELECT position FROM indexed) AND f.causation_id = %(cause)s "
    "ORDER BY notification_id LIMIT %(limit)s)) "
    + COLUMNS
    + f"FROM found JOIN {EVENTS} ON notification_id = position "
    "ORDER BY position LIMIT %(limit)s"
)

Kind = Literal["request", "event", "unknown"]


class Cause(NamedTuple):
    """What led to an event: a request, an event, or an id that nothing here has."""

    kind: Kind
    id: str
    event: Stored | None = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The events before and after in the stream, the cause, and the first 100 effects."""

    previous: Stored | None
    following: Stored | None
    cause: Cause | None
    caused: Sequence[Stored]


@dataclass(frozen=True, slots=True)
class Node:
    """A request or an event with what it led to; `note` says why it stands where it does."""

    kind: Kind
    id: str
    entry: Entry | None = None
    at: datetime | None = None
    note: str | None = None
    children: list[Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Trace:
    """A conversation's events under their request; cut off after 1,000 events when `truncated`."""

    root: Node
    events: int
    truncated: bool


async def at_position(conn: AsyncConnection[TupleRow], position: int) -> Stored | None:
    """Return the event at a position; None where the log has none."""
    async with conn.cursor(binary=True) as cursor:
        await cursor.execute(READ_ONE, (position,))
        row = await cursor.fetchone()
    return Stored(*row) if row else None


async def surroundings(conn: AsyncConnection[TupleRow], audit: Audit, entry: Entry) -> Surroundings:
    """Return what stands around an event in its stream, and in the order of cause and effect."""
    stored = entry.stored
    place = (stored.stream_id, stored.version)
    own = str(event_id(*place))
    values = {"schema": audit.schema, "cause": own, "limit": MAX_EFFECTS}
    async with conn.transaction(), conn.cursor(binary=True) as cursor:
        await cursor.execute(PLANNING)
        beside: list[Stored | None] = []
        for query in (COLUMNS + IN_STREAM + BEFORE, COLUMNS + IN_STREAM + AFTER):
            await cursor.execute(query, place)
            row = await cursor.fetchone()
            beside.append(Stored(*row) if row else None)
        await cursor.execute(audit.sql(CAUSED), values, prepare=False)
        caused = [Stored(*row) for row in await cursor.fetchall()]
    # An event that names itself as its cause is no effect of itself.
    effects = [effect for effect in caused if effect.position != stored.position]
    return Surroundings(beside[0], beside[1], await _cause(conn, audit, entry), effects)


async def _cause(conn: AsyncConnection[TupleRow], audit: Audit, entry: Entry) -> Cause | None:
    """Return what led to an event: its id holds no position, so the conversation is searched."""
    cause, correlation = entry.causation_id, entry.correlation_id
    if cause is None:
        return None
    if cause == correlation or correlation is None:
        return Cause("request" if correlation else "unknown", cause)
    earlier = Search(correlation_id=correlation, before=entry.stored.position)
    for stored in (await find(conn, audit, earlier, MAX_TRACED)).events:
        if str(event_id(stored.stream_id, stored.version)) == cause:
            return Cause("event", cause, stored)
    return Cause("unknown", cause)


async def trace(conn: AsyncConnection[TupleRow], audit: Audit, correlation_id: str) -> Trace | None:
    """Return the tree of a conversation's first 1,000 events.

    None when there is no such conversation.
    """
    wanted = Search(correlation_id=correlation_id, newest_first=False)
    found = await find(conn, audit, wanted, MAX_TRACED)
    if not found.events:
        return None
    entries = [read_entry(stored) for stored in found.events]
    root = tree(correlation_id, entries)
    return Trace(root, len(entries), truncated=found.following is not None)


def tree(correlation_id: str, entries: Iterable[Entry]) -> Node:
    """Events, in order of position, under what caused them.

    A cause comes before its effect; what names no cause among the events before it hangs under the
    request, with a note, and so nothing can go in a circle.
    """
    events = list(entries)
    known = [entry.recorded_at for entry in events if entry.recorded_at is not None]
    root = Node("request", correlation_id, at=min(known, default=None))
    placed: dict[str, tuple[Node, int]] = {correlation_id: (root, 0)}
    for entry in events:
        own = str(event_id(entry.stored.stream_id, entry.stored.version))
        parent, depth, note = _place(entry, placed, root)
        node = Node("event", own, entry, entry.recorded_at, note)
        parent.children.append(node)
        placed.setdefault(own, (node, depth + 1))
    return root


def _place(
    entry: Entry, placed: Mapping[str, tuple[Node, int]], root: Node
) -> tuple[Node, int, str | None]:
    """Under which node an event hangs, how deep that is, and why where it is not its cause."""
    cause = entry.causation_id
    if cause is None:
        return root, 0, "it names no cause"
    if cause not in placed:
        return root, 0, f"its cause {cause} is not before it in this trace"
    parent, depth = placed[cause]
    if depth >= MAX_DEPTH:
        return root, 0, f"its cause {cause} is nested too deep to draw this below it"
    return parent, depth, None

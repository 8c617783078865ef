"""The audit's answers: the same shapes over HTTP and from `backlot events list --json`."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from engine.privacy import PayloadMode
from infra.http.shapes import VIDEO_ID, Time, Wire

EVENT_ID = "c5a2b7e0-52d9-5b8e-9c3c-6e1f0a3d4b5c"


class AuditEvent(Wire):
    """A recorded event; `recordedAt`, `actor` and the ids are missing where they can't be read.

    `payload` is what was recorded beside them, in the form that `payloadMode` says. An event that
    this version can't read has an `error` and, in mode `full`, its raw bytes in base64 as `state`.
    """

    position: Annotated[int, Field(examples=[1042])]
    id: Annotated[UUID, Field(examples=[EVENT_ID])]
    stream_id: Annotated[UUID, Field(examples=[VIDEO_ID])]
    version: Annotated[int, Field(examples=[1])]
    topic: Annotated[str, Field(examples=["comment.posted.v1"])]
    type: Annotated[str, Field(examples=["comment.posted"])]
    aggregate: Annotated[str, Field(examples=["comment"])]
    recorded_at: Time | None = None
    actor: Annotated[str | None, Field(examples=["alice"])] = None
    correlation_id: str | None = None
    causation_id: str | None = None
    payload: Annotated[
        dict[str, object] | None, Field(examples=[{"content": "¡Qué bonito!", "author": "alice"}])
    ] = None
    payload_mode: PayloadMode
    error: str | None = None
    state: str | None = None


class EventRef(Wire):
    """Another event, by its place."""

    position: int
    id: UUID
    topic: str


class CauseRef(Wire):
    """What led to an event: the request, an event, or an id that is not known here."""

    kind: Literal["request", "event", "unknown"]
    id: str
    position: int | None = None
    topic: str | None = None


class AuditEventDetail(AuditEvent):
    """An event, its neighbours in its stream, its cause, and at most 100 of its effects."""

    previous: EventRef | None = None
    next: EventRef | None = None
    caused_by: CauseRef | None = None
    caused: list[EventRef]


class StreamEvent(AuditEvent):
    """An event of a stream with the fields of the aggregate that it changed.

    `changed` is missing in mode `none`, and from the first event on that can't be applied.
    """

    changed: Annotated[
        dict[str, dict[str, object]] | None,
        Field(examples=[{"title": {"from": "Rain", "to": "A walk in the rain"}}]),
    ] = None


class AggregateState(Wire):
    """An aggregate as it stood after an event; `error` says why it is not known beyond that."""

    aggregate: Annotated[str, Field(examples=["upload"])]
    id: UUID
    version: int
    created_on: Time | None = None
    modified_on: Time | None = None
    fields: Annotated[
        dict[str, object] | None, Field(examples=[{"title": "Rain", "status": "completed"}])
    ] = None
    payload_mode: PayloadMode
    error: str | None = None


class StreamHistory(Wire):
    """A page of a stream's events, oldest first, and the aggregate's state at the end asked for."""

    stream_id: UUID
    aggregate: str
    items: list[StreamEvent]
    state: AggregateState
    next_cursor: str | None = None


class TraceNode(Wire):
    """A request or event, and what it led to; other kinds may come.

    `note` tells why a node hangs under the request although that is not its cause.
    """

    kind: Annotated[str, Field(examples=["request", "event"])]
    id: str
    position: int | None = None
    topic: str | None = None
    stream_id: UUID | None = None
    version: int | None = None
    actor: str | None = None
    at: Time | None = None
    note: str | None = None
    children: list[TraceNode]


class TraceTree(Wire):
    """A conversation; `truncated` when it has more than the 1,000 events that are shown."""

    correlation_id: str
    events: int
    truncated: bool
    root: TraceNode


class TopicCount(Wire):
    """How many events of one stored topic there are."""

    topic: str
    type: str
    aggregate: str
    events: int


class AggregateCount(Wire):
    """How many events the aggregates of one kind have."""

    aggregate: str
    events: int


class DayCount(Wire):
    """How many events were recorded on a day (UTC)."""

    day: date
    events: int


class AuditStats(Wire):
    """What the log holds up to `head`; up to `indexed` the audit's index counted it.

    Sizes are in bytes: the events' contents, the log's table and its indexes, and all that the
    audit keeps. `unreadable` events tell no time; `days` are the last 366 that have events.
    """

    head: int
    indexed: int
    events: int
    streams: int
    unreadable: int
    first_at: Time | None = None
    last_at: Time | None = None
    state_bytes: int
    table_bytes: int
    index_bytes: int
    audit_bytes: int
    topics: list[TopicCount]
    aggregates: list[AggregateCount]
    days: list[DayCount]

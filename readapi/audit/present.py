"""What was found in the log, put into the audit's shapes as a payload mode admits it."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic.alias_generators import to_camel

from infra.codec import event_id
from infra.privacy import PayloadMode, mask_actor, present
from projections.audit.causes import Cause, Node, Surroundings, Trace
from projections.audit.events import Entry, aggregate_of, type_of
from projections.audit.stats import LogStats
from projections.audit.streams import FieldChange, Fold, StreamStep
from projections.log import Stored
from readapi.audit.shapes import (
    AggregateCount,
    AggregateState,
    AuditEvent,
    AuditEventDetail,
    AuditStats,
    CauseRef,
    DayCount,
    EventRef,
    StreamEvent,
    TopicCount,
    TraceNode,
    TraceTree,
)


def as_event(entry: Entry, mode: PayloadMode) -> AuditEvent:
    """An event as the mode admits it."""
    return AuditEvent(**_event(entry, mode))


def as_detail(entry: Entry, around: Surroundings, mode: PayloadMode) -> AuditEventDetail:
    """An event with what stands around it."""
    return AuditEventDetail(
        **_event(entry, mode),
        previous=_ref(around.previous),
        next=_ref(around.following),
        caused_by=_cause(around.cause),
        caused=[ref for ref in map(_ref, around.caused) if ref is not None],
    )


def as_step(step: StreamStep, mode: PayloadMode) -> StreamEvent:
    """An event of a stream with its changes."""
    changed = None if step.changes is None else _changed(step.changes, mode)
    return StreamEvent(**_event(step.entry, mode), changed=changed)


def as_state(fold: Fold, mode: PayloadMode) -> AggregateState:
    """The aggregate as far as it was folded."""
    aggregate = fold.aggregate
    return AggregateState(
        aggregate=fold.kind,
        id=fold.stream_id,
        version=fold.version,
        created_on=fold.created_on,
        modified_on=aggregate.modified_on if aggregate else None,
        fields=present({to_camel(name): value for name, value in fold.fields.items()}, mode),
        payload_mode=mode,
        error=None if fold.error is None else _explain(fold.error, mode),
    )


def as_trace(correlation_id: str, trace: Trace, mode: PayloadMode) -> TraceTree:
    """A conversation's tree."""
    return TraceTree(
        correlation_id=correlation_id,
        events=trace.events,
        truncated=trace.truncated,
        root=_node(trace.root, mode),
    )


def as_stats(stats: LogStats) -> AuditStats:
    """Counts, the most frequent first and the newest day first."""
    aggregates: Counter[str] = Counter()
    for topic, events in stats.topics.items():
        aggregates[aggregate_of(topic)] += events
    return AuditStats(
        head=stats.head,
        indexed=stats.indexed,
        events=stats.events,
        streams=stats.streams,
        unreadable=stats.unreadable,
        first_at=stats.first_at,
        last_at=stats.last_at,
        state_bytes=stats.state_bytes,
        table_bytes=stats.table_bytes,
        index_bytes=stats.index_bytes,
        audit_bytes=stats.audit_bytes,
        topics=[
            TopicCount(topic=topic, type=type_of(topic), aggregate=aggregate_of(topic), events=n)
            for topic, n in _ranked(stats.topics)
        ],
        aggregates=[AggregateCount(aggregate=k, events=n) for k, n in _ranked(aggregates)],
        days=[DayCount(day=day, events=n) for day, n in sorted(stats.days.items(), reverse=True)],
    )


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _event(entry: Entry, mode: PayloadMode) -> dict[str, Any]:
    stored, full = entry.stored, mode is PayloadMode.FULL
    topic = stored.topic or ""
    fields = {
        "position": stored.position,
        "id": event_id(stored.stream_id, stored.version),
        "stream_id": stored.stream_id,
        "version": stored.version,
        "topic": topic,
        "type": type_of(topic),
        "aggregate": aggregate_of(topic),
        "recorded_at": entry.recorded_at,
        "actor": mask_actor(entry.actor, mode),
        "correlation_id": entry.correlation_id,
        "causation_id": entry.causation_id,
        "payload": None if entry.payload is None else present(entry.payload, mode),
        "payload_mode": mode,
    }
    if entry.error is not None:
        fields["error"] = _explain(entry.error, mode)
        fields["state"] = base64.b64encode(stored.state or b"").decode() if full else None
    return fields


def _explain(error: Exception, mode: PayloadMode) -> str:
    """What is wrong; the message itself may quote a value, so only mode `full` shows it."""
    if mode is PayloadMode.FULL:
        return str(error)
    return f"can't be read: {type(error.__cause__ or error).__name__}"


def _changed(
    changes: Mapping[str, FieldChange], mode: PayloadMode
) -> dict[str, dict[str, object]] | None:
    shown: dict[str, dict[str, object]] = {}
    for name, change in changes.items():
        values = present({"from": change.before, "to": change.after}, mode)
        if values is None:
            return None
        shown[to_camel(name)] = values
    return shown if mode is not PayloadMode.NONE else None


def _ref(stored: Stored | None) -> EventRef | None:
    if stored is None:
        return None
    own = event_id(stored.stream_id, stored.version)
    return EventRef(position=stored.position, id=own, topic=stored.topic or "")


def _cause(cause: Cause | None) -> CauseRef | None:
    if cause is None:
        return None
    ref = _ref(cause.event)
    return CauseRef(
        kind=cause.kind,
        id=cause.id,
        position=ref.position if ref else None,
        topic=ref.topic if ref else None,
    )


def _node(node: Node, mode: PayloadMode) -> TraceNode:
    stored = node.entry.stored if node.entry else None
    return TraceNode(
        kind=node.kind,
        id=node.id,
        position=stored.position if stored else None,
        topic=stored.topic if stored else None,
        stream_id=stored.stream_id if stored else None,
        version=stored.version if stored else None,
        actor=mask_actor(node.entry.actor, mode) if node.entry else None,
        at=node.at,
        note=node.note,
        children=[_node(child, mode) for child in node.children],
    )

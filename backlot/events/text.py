"""The audit's answers in lines for people, as wide as their terminal.

What was recorded may be anything, so nothing of it reaches the terminal as a control character.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from io import StringIO
from typing import TypeVar

import psycopg
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from backlot.database import database_url
from backlot.features import read_models
from backlot.output import change_lines, flow, printable, table, width
from backlot.signals import run
from engine.inspection.index import Audit
from engine.privacy import PayloadMode
from infra.errors import OperatorError, UsageError
from infra.http.shapes import rfc3339
from infra.postgres.connection import UNHURRIED, explained, open_async_connection
from infra.settings import load_settings
from readapi.audit.inspector import Inspector, NotRecorded
from readapi.audit.shapes import (
    AggregateState,
    AuditEvent,
    AuditEventDetail,
    AuditStats,
    EventRef,
    StreamEvent,
    TraceNode,
    TraceTree,
)
from readapi.paging import InvalidCursor

SHOWN_DAYS = 14


def day_of(event: AuditEvent) -> str:
    """The day under which an event stands in a list (UTC)."""
    return f"{event.recorded_at:%Y-%m-%d}" if event.recorded_at else "unknown day"


def event_lines(event: AuditEvent, columns: int | None = None) -> Iterator[str]:
    """Position, time (UTC), type, actor and stream; `!` marks what can't be read."""
    time = f"{event.recorded_at:%H:%M:%S}Z" if event.recorded_at else "?"
    kind = printable(("! " if event.error else "") + event.type)
    actor = printable(event.actor or "")
    cells = (f"{event.position:>8}", f"{time:<9}", f"{kind:<27}", f"{actor:<12}")
    return flow((*cells, str(event.stream_id)), columns)


def step_lines(step: StreamEvent, columns: int | None = None) -> Iterator[str]:
    """An event of a stream, and each field that it changed; of long texts the changed part."""
    place = (f"v{step.version}", str(step.position), _at(step.recorded_at))
    who = (printable(step.actor),) if step.actor else ()
    yield from flow((*place, printable(step.type), *who), columns)
    if step.error:
        yield f"    ! {printable(step.error)}"
    for name, change in (step.changed or {}).items():
        yield from change_lines(f"    {name}", change["from"], change["to"], columns)


def state_lines(state: AggregateState) -> Iterator[str]:
    """An aggregate as it stood."""
    yield f"{printable(state.aggregate)} {state.id}, version {state.version}"
    yield f"  created {_at(state.created_on)}, modified {_at(state.modified_on)}"
    for name, value in (state.fields or {}).items():
        yield f"  {name}: {_json(value)}"
    if state.error:
        yield f"  ! not known beyond this version: {printable(state.error)}"


def detail_lines(event: AuditEventDetail) -> Iterator[str]:
    """An event with what stands around it."""
    yield f"position     {event.position}"
    yield f"event        {printable(event.topic)}, version {event.version} of its stream"
    yield f"stream       {event.stream_id}"
    yield f"id           {event.id}"
    yield f"recorded     {_at(event.recorded_at)}"
    yield f"actor        {printable(event.actor or '-')}"
    yield f"correlation  {printable(event.correlation_id or '-')}"
    cause = event.caused_by
    place = f" at {cause.position}, {cause.topic}" if cause and cause.position else ""
    yield f"caused by    {printable(f'{cause.kind} {cause.id}{place}') if cause else '-'}"
    yield f"previous     {_ref(event.previous)}"
    yield f"next         {_ref(event.next)}"
    for effect in event.caused:
        yield f"caused       {_ref(effect)}"
    if event.error:
        yield f"error        {printable(event.error)}"
    if event.state is not None:
        yield f"state        {event.state} (base64)"
    if event.payload is not None:
        yield "payload"
        yield from _json(event.payload, indent=2).splitlines()


def trace_lines(trace: TraceTree) -> Iterator[str]:
    """The tree of a conversation."""
    root = Tree(_node_text(trace.root))
    todo = [(root, trace.root)]
    while todo:
        branch, node = todo.pop()
        todo += [(branch.add(_node_text(child)), child) for child in node.children]
    yield from _rendered(root)
    if trace.truncated:
        yield f"only the first {trace.events} events are shown: `events list --correlation` has all"


def stats_lines(stats: AuditStats) -> Iterator[str]:
    """Counts and sizes."""
    yield f"{stats.events:,} events in {stats.streams:,} streams, up to position {stats.head}"
    yield f"from {_at(stats.first_at)} to {_at(stats.last_at)}"
    sizes = (stats.state_bytes, stats.table_bytes, stats.index_bytes, stats.audit_bytes)
    contents, table, indexes, audit = (f"{size / 1e6:,.1f} MB" for size in sizes)
    yield f"contents {contents}, table {table}, its indexes {indexes}, the audit's index {audit}"
    if stats.unreadable:
        yield f"{stats.unreadable:,} events tell no time"
    if stats.indexed < stats.head:
        yield f"the audit's index is {stats.head - stats.indexed:,} events behind"
    yield from _counts("topic", [(each.topic, each.events) for each in stats.topics])
    yield from _counts("aggregate", [(each.aggregate, each.events) for each in stats.aggregates])
    days = [(f"{each.day}", each.events) for each in stats.days[:SHOWN_DAYS]]
    yield from _counts("day (UTC)", days)


def _at(time: datetime | None) -> str:
    return rfc3339(time, "seconds") if time else "unknown time"


def _ref(event: EventRef | None) -> str:
    return f"{event.position}, {printable(event.topic)}" if event else "-"


def _json(value: object, indent: int | None = None) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return "\n".join(printable(line) for line in text.split("\n"))


def _node_text(node: TraceNode) -> Text:
    if node.kind == "request":
        return Text(f"request {printable(node.id)}  {_at(node.at)}")
    who = f"  {printable(node.actor)}" if node.actor else ""
    note = f"\n({printable(node.note)})" if node.note else ""
    return Text(f"{node.position}  {printable(node.topic or '')}  {_at(node.at)}{who}{note}")


def _counts(title: str, counts: list[tuple[str, int]]) -> Iterator[str]:
    yield ""
    yield from table(
        (title, "events"), [(printable(name) or "(none)", f"{count:,}") for name, count in counts]
    )


def _rendered(tree: Tree) -> Iterator[str]:
    console = Console(file=StringIO(), width=width(), color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(tree)
    for line in captured.get().splitlines():
        yield line.rstrip()


T = TypeVar("T")


class NotInspected(OperatorError):
    """The log could not be asked, or holds nothing of what was asked for."""


def inspect(mode: PayloadMode, question: Callable[[Inspector], Awaitable[T]]) -> T:
    """The answer to a question about the log; raises UsageError, NotInspected, NothingRuns."""
    url = database_url(load_settings())
    try:
        return run(_ask(url, mode, question))
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        raise NotInspected(
            "the audit's index is not there yet: start this version of Backlot on it once"
        ) from error
    except psycopg.Error as error:
        raise NotInspected(f"the database does not answer: {explained(error)}") from error
    except UnicodeEncodeError as error:
        raise NotInspected("what was asked for is not text in UTF-8") from error
    except NotRecorded as error:
        raise NotInspected(str(error)) from error
    except InvalidCursor as error:
        raise UsageError(str(error)) from error


async def _ask(url: str, mode: PayloadMode, question: Callable[[Inspector], Awaitable[T]]) -> T:
    async with await open_async_connection(url, "events", UNHURRIED) as conn:
        return await question(Inspector(conn, read_models()[Audit], mode))

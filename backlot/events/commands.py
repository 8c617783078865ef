"""`backlot events`: what is in the log, why, and what came of it; HTTP has the same answers.

What was recorded may be anything, so nothing of it reaches the terminal as a control character.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar
from uuid import UUID

import psycopg
import typer
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from backlot import arguments
from backlot.arguments import group, moment
from backlot.database import persons_at_hand, url_at_hand
from backlot.events import archive
from backlot.output import Json, change_lines, flow, printable, show, table, width
from backlot.signals import run
from engine.payload_mode import PayloadMode
from infra.errors import OperatorError, UsageError
from infra.http.shapes import rfc3339
from infra.postgres.connection import UNHURRIED, explained, open_async_connection
from infra.pseudonyms import searched
from infra.settings import load_settings

if TYPE_CHECKING:
    from engine.inspection.index import Search
    from engine.persons import Persons
    from infra.http.shapes import Wire
    from readapi.audit import inspector as audit

T = TypeVar("T")
W = TypeVar("W", bound="Wire")

PAGE = 200
SHOWN_DAYS = 14


class NotInspected(OperatorError):
    """The log could not be asked, or holds nothing of what was asked for."""


app = group("The event log: list, follow, show, trace, export.")

Mode = Annotated[
    PayloadMode, typer.Option("--payload", help="What is shown of contents and of who acted.")
]
Stream = Annotated[UUID | None, typer.Option(help="Only this stream's.")]
Aggregate = Annotated[
    str | None,
    typer.Option(
        help="Such as comment.", autocompletion=arguments.completion(arguments.aggregates)
    ),
]
Types = Annotated[
    list[str] | None,
    typer.Option(
        "--type",
        help="A topic with or without its version; several: any of them.",
        autocompletion=arguments.completion(arguments.event_types),
    ),
]
Actor = Annotated[
    str | None,
    typer.Option(help="Who acted: a user id; unless --payload is full, a pseudonym."),
]
Correlation = Annotated[str | None, typer.Option(help="Of one request.")]
StreamId = Annotated[UUID, typer.Argument(help="The stream, which is its aggregate's id.")]
AtVersion = Annotated[int | None, typer.Option(min=1, help="Up to this version.")]
AtTime = Annotated[str | None, typer.Option(help="Up to this time, included, as for `list`.")]


@app.command(name="list")
def list_events(
    stream: Stream = None,
    aggregate: Aggregate = None,
    types: Types = None,
    actor: Actor = None,
    correlation: Correlation = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--from", help="At or after this time: yesterday, 1h (ago), 2026-11-22 (UTC)."
        ),
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="Before this time.")] = None,
    after: Annotated[int, typer.Option(min=0, help="After this position.")] = 0,
    before: Annotated[int | None, typer.Option(min=1, help="Before this position.")] = None,
    order: Annotated[Literal["asc", "desc"], typer.Option(help="desc: newest first.")] = "desc",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Where the page before ended.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All pages; with --json an event a line.")
    ] = False,
    payload: Mode = PayloadMode.FULL,
    as_json: Json = False,
) -> None:
    """Events by any of what is known of them; all conditions together."""
    from engine.inspection.index import Search
    from engine.log import END_OF_LOG

    now = datetime.now(UTC)
    search = Search(
        stream=stream,
        aggregate=_known_aggregate(aggregate),
        types=_known_types(types),
        actor=actor,
        correlation_id=correlation,
        since=moment("--from", since, now),
        until=moment("--to", until, now),
        after=after,
        before=END_OF_LOG if before is None else before,
        newest_first=order == "desc",
    )
    printer = EventPrinter(as_json=as_json)

    async def print_events(inspector: audit.Inspector) -> None:
        wanted = await _by_pseudonym(inspector, search)
        page = await inspector.events(wanted, PAGE if everything else limit, cursor)
        if as_json and not everything:
            show_json(page)
            return
        printer.tell(page.items)
        while everything and page.next_cursor:
            page = await inspector.events(wanted, PAGE, page.next_cursor)
            printer.tell(page.items)
        if page.next_cursor:
            typer.echo(f"more: --cursor {page.next_cursor}", err=True)

    inspect(payload, print_events)


@app.command()
def tail(
    number: Annotated[
        int,
        typer.Option("--limit", "--lines", "-n", min=0, max=1000, help="How many to begin with."),
    ] = 20,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")
    ] = False,
    stream: Stream = None,
    aggregate: Aggregate = None,
    types: Types = None,
    actor: Actor = None,
    correlation: Correlation = None,
    payload: Mode = PayloadMode.FULL,
    as_json: Json = False,
) -> None:
    """The newest events, oldest first; with --json one a line."""
    from engine.inspection.index import Search, head_of, watch
    from engine.subscription import EVENTS, Notifications
    from infra.cancellation import together

    search = Search(stream, _known_aggregate(aggregate), _known_types(types), actor, correlation)
    printer = EventPrinter(as_json=as_json)

    async def print_tail(inspector: audit.Inspector) -> None:
        wanted = await _by_pseudonym(inspector, search)
        head = await head_of(inspector.conn)
        if number > 0:
            newest = await inspector.events(replace(wanted, before=head + 1), number)
            printer.tell(reversed(newest.items))
        if follow:
            notifications = Notifications(url_at_hand(load_settings()))
            wake = notifications.subscribe(EVENTS)

            async def print_arriving() -> None:
                found = watch(inspector.conn, inspector.audit, wanted, head, wake)
                async for stored in found:
                    printer.tell(await inspector.shown([stored]))

            await together(notifications.run(), print_arriving())

    # How one ends it.
    with suppress(KeyboardInterrupt):
        inspect(payload, print_tail)


@app.command(name="show")
def show_event(
    position: Annotated[int, typer.Argument(min=1, help="Its place in the log.")],
    payload: Mode = PayloadMode.FULL,
    as_json: Json = False,
) -> None:
    """One event with its neighbours in its stream, its cause and its effects."""
    found = inspect(payload, lambda inspector: inspector.event(position))
    tell(found, detail_lines, as_json=as_json)


@app.command(name="stream")
def show_stream(
    stream_id: StreamId,
    at_version: AtVersion = None,
    at_time: AtTime = None,
    payload: Mode = PayloadMode.FULL,
    as_json: Json = False,
) -> None:
    """A stream event by event with what each changed, and its state at the end of that."""
    from engine.inspection.streams import Fold
    from readapi.audit.inspector import as_state, as_step

    at = _moment(at_version, at_time)

    async def print_stream(inspector: audit.Inspector) -> None:
        if as_json:
            show_json(await inspector.stream(stream_id, at, sys.maxsize))
            return
        fold = Fold(stream_id)
        async for step in inspector.steps(fold, at):
            tell(as_step(step, payload), step_lines)
        typer.echo("")
        tell(as_state(fold, payload), state_lines)

    inspect(payload, print_stream)


@app.command(name="state")
def show_state(
    stream_id: StreamId,
    at_version: AtVersion = None,
    at_time: AtTime = None,
    payload: Mode = PayloadMode.FULL,
    as_json: Json = False,
) -> None:
    """An aggregate as it stood at a version or a time; by default as it is."""
    at = _moment(at_version, at_time)
    found = inspect(payload, lambda inspector: inspector.state(stream_id, at))
    tell(found, state_lines, as_json=as_json)


@app.command(name="trace")
def show_trace(
    correlation: Annotated[str, typer.Argument(help="The id of a request, and of its effects.")],
    payload: Mode = PayloadMode.FULL,
    as_json: Json = False,
) -> None:
    """Everything that a request led to, as a tree of cause and effect."""
    found = inspect(payload, lambda inspector: inspector.trace(correlation))
    tell(found, trace_lines, as_json=as_json)


@app.command(name="stats")
def show_stats(as_json: Json = False) -> None:
    """How many events of which kinds there are, and how large the log is."""
    found = inspect(PayloadMode.NONE, lambda inspector: inspector.stats())
    tell(found, stats_lines, as_json=as_json)


async def _by_pseudonym(inspector: audit.Inspector, search: Search) -> Search:
    """Return the search with its actor as the log has them."""
    if search.actor is None:
        return search
    by_name = inspector.mode is PayloadMode.FULL
    actor = await asyncio.to_thread(searched, inspector.persons, search.actor, by_name=by_name)
    return replace(search, actor=actor)


def _moment(at_version: int | None, at_time: str | None) -> audit.Moment:
    from readapi.audit.inspector import Moment

    return Moment(at_version, moment("--at-time", at_time, datetime.now(UTC)))


def _known_types(types: list[str] | None) -> list[str]:
    """Return the types that were named, each known; raise UnknownName."""
    known = arguments.event_types()
    if not known.issuperset(types or ()):
        # Of a release that was rolled back, or not this one's.
        known |= arguments.types_of(_recorded_topics())
    return [arguments.require("type of event", each, known) for each in types or ()]


def _known_aggregate(kind: str | None) -> str | None:
    if kind is None or kind in (known := arguments.aggregates()):
        return kind
    recorded = {topic.partition(".")[0] for topic in _recorded_topics()}
    return arguments.require("kind of aggregate", kind, known | recorded)


def _recorded_topics() -> list[str]:
    """Return the topics that the log has, where it can be asked."""
    try:
        found = inspect(PayloadMode.NONE, lambda inspector: inspector.stats())
    except OperatorError:
        return []
    return [each.topic for each in found.topics]


def inspect(mode: PayloadMode, question: Callable[[audit.Inspector], Awaitable[T]]) -> T:
    """Return the answer of the log; raise UsageError, NotInspected and NothingRuns."""
    from backlot.features import read_models
    from engine.inspection.index import Audit
    from readapi.audit.inspector import Inspector, NotRecorded
    from readapi.pages import InvalidCursor

    async def ask(persons: Persons) -> T:
        async with await open_async_connection(persons.database_url, "events", UNHURRIED) as conn:
            return await question(Inspector(conn, read_models()[Audit], mode, persons))

    try:
        with closing(persons_at_hand(load_settings())) as persons:
            return run(ask(persons))
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


def show_json(answer: Wire) -> None:
    """Print an answer exactly as HTTP gives it."""
    show("", answer.model_dump(mode="json", by_alias=True, exclude_none=True), as_json=True)


def tell(answer: W, lines: Callable[[W], Iterable[str]], *, as_json: bool = False) -> None:
    """Print an answer as lines, or as JSON."""
    if as_json:
        show_json(answer)
        return
    for line in lines(answer):
        typer.echo(line)


class EventPrinter:
    """Prints events in lines, under the day on which they were recorded; or one a line as JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._day = ""

    def tell(self, events: Iterable[audit.AuditEvent]) -> None:
        for event in events:
            if self._as_json:
                typer.echo(event.to_json())
                continue
            if (day := day_of(event)) != self._day:
                self._day = day
                typer.echo(day)
            tell(event, event_lines)


def day_of(event: audit.AuditEvent) -> str:
    """Return the day under which an event stands in a list (UTC)."""
    return f"{event.recorded_at:%Y-%m-%d}" if event.recorded_at else "unknown day"


def event_lines(event: audit.AuditEvent, columns: int | None = None) -> Iterator[str]:
    """Yield position, time (UTC), type, actor and stream; `!` marks what can't be read."""
    time = f"{event.recorded_at:%H:%M:%S}Z" if event.recorded_at else "?"
    kind = printable(("! " if event.error else "") + event.type)
    actor = printable(event.actor or "")
    cells = (f"{event.position:>8}", f"{time:<9}", f"{kind:<27}", f"{actor:<12}")
    return flow((*cells, str(event.stream_id)), columns)


def step_lines(step: audit.StreamEvent, columns: int | None = None) -> Iterator[str]:
    """Yield an event of a stream, and each field that it changed; of long texts, the change."""
    place = (f"v{step.version}", str(step.position), _at(step.recorded_at))
    who = (printable(step.actor),) if step.actor else ()
    yield from flow((*place, printable(step.type), *who), columns)
    if step.error:
        yield f"    ! {printable(step.error)}"
    for name, change in (step.changed or {}).items():
        yield from change_lines(f"    {name}", change["from"], change["to"], columns)


def state_lines(state: audit.AggregateState) -> Iterator[str]:
    """Yield an aggregate as it stood."""
    yield f"{printable(state.aggregate)} {state.id}, version {state.version}"
    yield f"  created {_at(state.created_on)}, modified {_at(state.modified_on)}"
    for name, value in (state.fields or {}).items():
        yield f"  {name}: {_json(value)}"
    if state.error:
        yield f"  ! not known beyond this version: {printable(state.error)}"


def detail_lines(event: audit.AuditEventDetail) -> Iterator[str]:
    """Yield an event with what stands around it."""
    yield f"position     {event.position}"
    yield f"event        {printable(event.topic)}, version {event.version} of its stream"
    yield f"stream       {event.stream_id}"
    yield f"id           {event.id}"
    yield f"recorded     {_at(event.recorded_at)}"
    kind = f" ({event.actor_kind})" if event.actor_kind else ""
    yield f"actor        {printable(event.actor or '-')}{kind}"
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


def trace_lines(trace: audit.TraceTree) -> Iterator[str]:
    """Yield the tree of a conversation."""
    root = Tree(_node_text(trace.root))
    todo = [(root, trace.root)]
    while todo:
        branch, node = todo.pop()
        todo += [(branch.add(_node_text(child)), child) for child in node.children]
    console = Console(file=StringIO(), width=width(), color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(root)
    yield from (line.rstrip() for line in captured.get().splitlines())
    if trace.truncated:
        yield f"only the first {trace.events} events are shown: `events list --correlation` has all"


def stats_lines(stats: audit.AuditStats) -> Iterator[str]:
    """Yield counts and sizes."""
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


def _ref(event: audit.EventRef | None) -> str:
    return f"{event.position}, {printable(event.topic)}" if event else "-"


def _json(value: object, indent: int | None = None) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return "\n".join(printable(line) for line in text.split("\n"))


def _node_text(node: audit.TraceNode) -> Text:
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


archive.register(app)

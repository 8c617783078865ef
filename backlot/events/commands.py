"""`backlot events`: what is in the log, why, and what came of it; HTTP has the same answers."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from backlot import arguments
from backlot.arguments import group, moment
from backlot.database import database_url
from backlot.events import archive
from backlot.output import Json, show
from engine.privacy import PayloadMode
from infra.errors import OperatorError
from infra.settings import load_settings

if TYPE_CHECKING:
    from infra.http.shapes import Wire
    from readapi.audit.inspector import Inspector
    from readapi.audit.shapes import AuditEvent


class Lines:
    """Prints events one by one: under the day on which they were recorded."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._day = ""

    def tell(self, event: AuditEvent) -> None:
        """Print an event."""
        from backlot.events.text import day_of, event_lines

        if self._as_json:
            typer.echo(event.to_json())
            return
        if (day := day_of(event)) != self._day:
            self._day = day
            typer.echo(day)
        show_lines(event_lines(event))


def show_json(found: Wire) -> None:
    """Print an answer exactly as HTTP gives it."""
    show("", found.model_dump(mode="json", by_alias=True, exclude_none=True), as_json=True)


def show_lines(lines: Iterable[str]) -> None:
    """Print lines."""
    for line in lines:
        typer.echo(line)


if TYPE_CHECKING:
    from readapi.audit.inspector import Inspector, Moment

PAGE = 200


class SortOrder(StrEnum):
    """By position."""

    ASC = "asc"
    DESC = "desc"


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
Actor = Annotated[str | None, typer.Option(help="Who acted.")]
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
    order: Annotated[SortOrder, typer.Option(help="desc: newest first.")] = SortOrder.DESC,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Where the page before ended.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All pages; with --json an event a line.")
    ] = False,
    payload: Mode = PayloadMode.FULL,
    as_json: Json = False,
) -> None:
    """Events by any of what is known of them; all conditions together."""
    from backlot.events.text import inspect
    from engine.inspection.search import Search
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
        newest_first=order is SortOrder.DESC,
    )
    lines = Lines(as_json=as_json)

    async def print_page(inspector: Inspector) -> None:
        page = await inspector.events(search, limit, cursor)
        if as_json:
            show_json(page)
            return
        for event in page.items:
            lines.tell(event)
        if page.next_cursor:
            typer.echo(f"more: --cursor {page.next_cursor}", err=True)

    async def print_all(inspector: Inspector) -> None:
        following, more = cursor, True
        while more:
            page = await inspector.events(search, PAGE, following)
            for event in page.items:
                lines.tell(event)
            following, more = page.next_cursor, page.next_cursor is not None

    inspect(payload, print_all if everything else print_page)


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
    from backlot.events.text import inspect
    from engine.inspection.search import Search
    from engine.subscription import EVENTS, Notifications
    from infra.cancellation import together

    search = Search(stream, _known_aggregate(aggregate), _known_types(types), actor, correlation)
    lines = Lines(as_json=as_json)

    async def print_tail(inspector: Inspector) -> None:
        head = await inspector.head()
        if number > 0:
            newest = await inspector.events(replace(search, before=head + 1), number)
            for event in reversed(newest.items):
                lines.tell(event)
        if follow:
            notifications = Notifications(database_url(load_settings()))
            wake = notifications.subscribe(EVENTS)

            async def print_arriving() -> None:
                async for event in inspector.arriving(search, head, wake):
                    lines.tell(event)

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
    from backlot.events.text import detail_lines, inspect

    found = inspect(payload, lambda inspector: inspector.event(position))
    show_json(found) if as_json else show_lines(detail_lines(found))


@app.command(name="stream")
def show_stream(
    stream_id: StreamId,
    at_version: AtVersion = None,
    at_time: AtTime = None,
    payload: Mode = PayloadMode.FULL,
    as_json: Json = False,
) -> None:
    """A stream event by event with what each changed, and its state at the end of that."""
    from backlot.events.text import inspect, state_lines, step_lines
    from engine.inspection.streams import Fold

    at = _moment(at_version, at_time)

    async def print_stream(inspector: Inspector) -> None:
        if as_json:
            show_json(await inspector.stream(stream_id, at, sys.maxsize))
            return
        number, fold = 0, Fold(stream_id)
        async for step in inspector.steps(fold, at):
            show_lines(step_lines(step))
            number += 1
        inspector.require(fold, at, number)
        show_lines(["", *state_lines(inspector.told(fold))])

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
    from backlot.events.text import inspect, state_lines

    at = _moment(at_version, at_time)
    found = inspect(payload, lambda inspector: inspector.state(stream_id, at))
    show_json(found) if as_json else show_lines(state_lines(found))


@app.command(name="trace")
def show_trace(
    correlation: Annotated[str, typer.Argument(help="The id of a request, and of its effects.")],
    payload: Mode = PayloadMode.FULL,
    as_json: Json = False,
) -> None:
    """Everything that a request led to, as a tree of cause and effect."""
    from backlot.events.text import inspect, trace_lines

    found = inspect(payload, lambda inspector: inspector.trace(correlation))
    show_json(found) if as_json else show_lines(trace_lines(found))


@app.command(name="stats")
def show_stats(as_json: Json = False) -> None:
    """How many events of which kinds there are, and how large the log is."""
    from backlot.events.text import inspect, stats_lines

    found = inspect(PayloadMode.NONE, lambda inspector: inspector.stats())
    show_json(found) if as_json else show_lines(stats_lines(found))


def _moment(at_version: int | None, at_time: str | None) -> Moment:
    from readapi.audit.inspector import Moment

    return Moment(at_version, moment("--at-time", at_time, datetime.now(UTC)))


def _known_types(types: list[str] | None) -> list[str]:
    """The types that were named, each known; raises UnknownName."""
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
    """The topics that the log has, where it can be asked."""
    from backlot.events.text import inspect

    try:
        found = inspect(PayloadMode.NONE, lambda inspector: inspector.stats())
    except OperatorError:
        return []
    return [each.topic for each in found.topics]


archive.register(app)

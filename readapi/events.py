"""The published messages for services, straight from the log: Kafka's values without Kafka.

A service asks for what lies behind a position that it keeps, waits for what comes next, or follows
a stream. Notifications wake whoever waits; nobody is asked about in between. The values are made as
the relay makes them, so that one program can read both.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from heapq import merge
from itertools import islice
from typing import Annotated, Any, NamedTuple

import structlog
from fastapi import APIRouter, Header, Query, Request, Response
from psycopg import Connection, InterfaceError, OperationalError
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from engine.subscription import happened, woken
from infra.errors import describe
from infra.http.auth import Service
from infra.http.openapi import sends
from infra.http.problems import Problem, problems
from infra.http.requests import client_address, header, subscriber
from infra.http.shapes import (
    BEGINNING,
    InvalidPosition,
    Position,
    decode_position,
    encode_position,
)
from infra.metrics import counter, gauge
from infra.postgres.connection import SHORT_WORK, Limits, thread_pool
from projections.feeds import Stretch, feeds
from projections.integration_events import TOPICS, Message
from readapi.live import (
    HEARTBEAT_SECONDS,
    RETRY_MS,
    EventStream,
)
from readapi.queries import MAX_TOKEN_LENGTH, ReadModelUnavailable
from readapi.stream_slots import LiveLimits, StreamSlots

log = structlog.get_logger(__name__)

DEFAULT_LIMIT, MOST_EVENTS = 100, 1_000
# Where few of the topics are wanted, so much more of the log is passed at once.
LEAST_READ = 500
LONGEST_WAIT_SECONDS = 30
# So long a request without `wait` looks for events of rare topics.
LOOK_SECONDS = 1.0
# What comes within this time is told together.
GATHER_SECONDS = 0.05
# Where a notification was lost.
POLL_SECONDS = 10.0
MAX_READERS = 1_000
CONNECTIONS = 2
BATCH = "application/cloudevents-batch+json"
STREAM = "text/event-stream"

READERS = gauge(
    "backlot_published_readers",
    "Services that follow or wait for published messages, or are being answered.",
)
TOLD = counter(
    "backlot_published_messages",
    "Messages that services were told over HTTP, by topic.",
    ("topic",),
)
UNTOLD = counter(
    "backlot_published_unreadable",
    "Recorded things that make no message of their topic, passed over whenever a service comes to "
    "one, by topic.",
    ("topic",),
)


class MessagePage(NamedTuple):
    """Messages in their order, each with the position that includes it; `position` is the end.

    `whole`: nothing lay behind it when it was read.
    """

    messages: Sequence[tuple[Message, Position]]
    position: Position
    whole: bool


class Wanted(NamedTuple):
    """Which topics a service wants, and how many messages at once."""

    topics: frozenset[str]
    limit: int


def read_page(conn: Connection[TupleRow], after: Position, wanted: Wanted) -> MessagePage:
    """Return what lies behind a position; raise InvalidPosition for one that is not reached yet.

    What comes from the log and what comes from the telemetry is told in the order of its time, each
    by itself in the order of its positions.
    """
    at: dict[str, int] = after._asdict()
    found: dict[str, Stretch] = {}
    for feed in feeds(wanted.topics, batch_events=max(wanted.limit, LEAST_READ)):
        found[feed.name] = stretch = feed.read(conn, at[feed.name])
        if stretch.head < at[feed.name]:
            detail = "The position is behind the end of the log, as after a restore of a backup."
            raise InvalidPosition(detail)
    told: list[tuple[Message, Position]] = []
    taken: Counter[str] = Counter()
    for name, message in islice(_by_time(found), wanted.limit):
        taken[name] += 1
        at[name] = message.position
        told.append((message, Position(**at)))
    for name, stretch in found.items():
        if taken[name] == len(stretch.messages):
            at[name] = stretch.until
    _tell_unreadable(found, after, at)
    whole = all(at[name] == stretch.head for name, stretch in found.items())
    return MessagePage(told, Position(**at), whole)


def _by_time(found: dict[str, Stretch]) -> Iterator[tuple[str, Message]]:
    each = ([(name, one) for one in stretch.messages] for name, stretch in found.items())
    return iter(merge(*each, key=lambda pair: pair[1].at))


def _tell_unreadable(found: dict[str, Stretch], after: Position, at: dict[str, int]) -> None:
    """Count and log what was passed over; the relay sets it aside, and so do consumers."""
    for name, stretch in found.items():
        for each in stretch.unreadable:
            if each.position <= at[name]:
                UNTOLD.labels(each.topic).inc()
                told = {"topic": each.topic, "position": each.position, "reason": each.error}
                log.warning("message_unreadable", **told)


@dataclass(eq=False)
class ServiceReader:
    """A service that is answered, waits or follows; `slots` are the names it is counted under."""

    slots: tuple[str, ...]
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class PublishedMessages:
    """Tells services what is published; to be used from one event loop."""

    def __init__(
        self,
        database_url: str,
        wake: asyncio.Event,
        limits: LiveLimits | None = None,
        connections: Limits = SHORT_WORK,
    ) -> None:
        """`wake` is set whenever something was recorded."""
        check = ConnectionPool.check_connection
        self._pool = thread_pool(
            database_url, "published messages", connections, size=CONNECTIONS, check=check
        )
        # So that whoever waits for a connection holds no thread of others.
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._wake = wake
        self._slots = StreamSlots(limits or LiveLimits())
        self._readers: set[ServiceReader] = set()
        self._attended = asyncio.Event()
        self._closing = asyncio.Event()

    async def run(self) -> None:
        """Wake whoever waits when something was recorded, until cancelled."""
        while True:
            # Without a service, what is recorded concerns nobody here.
            await self._attended.wait()
            await woken(self._wake, POLL_SECONDS)
            self._wake_all()
            await asyncio.sleep(GATHER_SECONDS)

    async def close(self) -> None:
        """End every stream and every wait; services go on at whoever serves then."""
        self._closing.set()
        self._wake_all()

    async def aclose(self) -> None:
        """Let go of the connections, too."""
        await self.close()
        await asyncio.to_thread(self._pool.close)

    def _wake_all(self) -> None:
        for reader in self._readers:
            reader.changed.set()

    def enter(self, person: str, address: str) -> ServiceReader:
        """Count one more reader; `leave` has to be told when it goes.

        Raise Problem 503 when too many are here, 429 when the user or the address has as many
        streams as one may.
        """
        if len(self._readers) >= MAX_READERS or self._closing.is_set():
            detail = "Too many services wait here; come back later."
            raise Problem(503, "unavailable", detail, headers={"Retry-After": "5"})
        reader = ServiceReader(self._slots.take(person, address))
        self._readers.add(reader)
        self._attended.set()
        READERS.set(len(self._readers))
        return reader

    def leave(self, reader: ServiceReader) -> None:
        """Give the reader's place to others; once is enough."""
        if reader in self._readers:
            self._readers.discard(reader)
            if not self._readers:
                self._attended.clear()
            self._slots.free(reader.slots)
            READERS.set(len(self._readers))

    @contextmanager
    def reader(self, person: str, address: str) -> Iterator[ServiceReader]:
        reader = self.enter(person, address)
        try:
            yield reader
        finally:
            self.leave(reader)

    async def check(self, position: Position, wanted: Wanted) -> None:
        """Raise what `next` raises for a position; wait for nothing."""
        await self._read(position, wanted._replace(limit=1))

    async def next(
        self, reader: ServiceReader, after: Position, wanted: Wanted, seconds: float
    ) -> MessagePage:
        """Return the next messages; an empty page where none has come in that time.

        Raise InvalidPosition, and ReadModelUnavailable where the log does not answer.
        """
        begun, position = time.monotonic(), after
        while True:
            # Before it reads: what is recorded from now on sets it again.
            reader.changed.clear()
            page = await self._read(position, wanted)
            left = seconds - (time.monotonic() - begun)
            if not page.whole:
                # The end of the log is farther than one read.
                left += max(0.0, LOOK_SECONDS - seconds)
            if page.messages or self._closing.is_set() or left <= 0:
                return page
            position = page.position
            if page.whole:
                await happened(reader.changed, left)

    async def stream(
        self, reader: ServiceReader, after: Position, wanted: Wanted
    ) -> AsyncGenerator[bytes, None]:
        """Yield messages as server-sent events until the service goes, or the server stops."""
        position = after
        try:
            yield b"retry: %d\n\n" % RETRY_MS
            while not self._closing.is_set():
                try:
                    page = await self.next(reader, position, wanted, HEARTBEAT_SECONDS)
                except (ReadModelUnavailable, InvalidPosition) as error:
                    # The service comes back to where it was, and is told what is wrong.
                    log.warning("published_stream_ended", error=describe(error))
                    return
                _count(page)
                position = page.position
                for message, at in page.messages:
                    yield _as_event(message, at)
                if not page.messages:
                    # A block without data is no event, and its id counts all the same.
                    yield f": still here\nid: {encode_position(*position)}\n\n".encode()
        finally:
            self.leave(reader)

    async def _read(self, after: Position, wanted: Wanted) -> MessagePage:
        async with self._turns:
            try:
                return await asyncio.to_thread(self._read_now, after, wanted)
            except (OperationalError, InterfaceError) as error:
                raise ReadModelUnavailable(str(error)) from error

    def _read_now(self, after: Position, wanted: Wanted) -> MessagePage:
        # Not before: most processes have no services.
        self._pool.open()
        with self._pool.connection() as conn:
            return read_page(conn, after, wanted)


def _count(page: MessagePage) -> None:
    """Count the messages of a page that is told."""
    for topic, told in Counter(message.topic for message, _ in page.messages).items():
        TOLD.labels(topic).inc(told)


def _as_event(message: Message, at: Position) -> bytes:
    told = message.topic.encode(), message.cloud_event()
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (encode_position(*at).encode(), *told)


async def _published(request: Request) -> PublishedMessages:
    found: PublishedMessages = request.app.state.published
    return found


CLOUD_EVENT = {
    "title": "CloudEvent",
    "type": "object",
    "description": "CloudEvents 1.0. `data` is the value as in the topic of Kafka that `type` "
    "names; `partitionkey` its key, within which events keep their order.",
    "required": ["specversion", "id", "type", "source", "time", "partitionkey", "position", "data"],
    "properties": {
        "specversion": {"type": "string", "const": "1.0"},
        "id": {"type": "string", "format": "uuid"},
        "type": {"type": "string", "enum": sorted(TOPICS)},
        "source": {"type": "string"},
        "time": {"type": "string", "format": "date-time"},
        "datacontenttype": {"type": "string", "const": "application/json"},
        "partitionkey": {"type": "string"},
        "position": {"type": "string"},
        "correlationid": {"type": "string"},
        "data": {"type": "object"},
    },
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The next events, none where nothing is behind the position yet; or, to "
        "whoever accepts `text/event-stream`, these and all that come, whose `id` is the position "
        "that includes them, whose `event` is the topic, and whose `data` is one CloudEvent.",
        "headers": sends("Vary", "X-Accel-Buffering")
        | {
            "Backlot-Position": {
                "description": "What to send as `after` next; a stream says that in each `id`.",
                "schema": {"type": "string"},
            }
        },
        "content": {
            BATCH: {"schema": {"type": "array", "items": CLOUD_EVENT}},
            STREAM: {"schema": {"type": "string"}},
        },
    },
    **problems(401, 403, 422, 429, 503),
}
After = Annotated[
    str | None,
    Query(
        description="A `Backlot-Position` up to which everything is known already: that of the "
        "answer before, or of any other. Without it, from the beginning.",
        max_length=MAX_TOKEN_LENGTH,
    ),
]
Topics = Annotated[
    str | None,
    Query(description="Names of topics with commas between; without it, all.", max_length=1_000),
]
AfterEvent = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        description="In place of `after`: the `id` of the last event that the client has.",
        max_length=MAX_TOKEN_LENGTH,
    ),
]
Seconds = Annotated[
    int,
    Query(
        ge=0,
        le=LONGEST_WAIT_SECONDS,
        description="How long to wait for the next event where there is none yet.",
    ),
]

router = APIRouter(tags=["services"])


@router.get(
    "/events",
    response_class=Response,
    responses=ANSWERS,
    summary="Published events behind a position",
)
async def list_published_events(
    request: Request,
    caller: Service,
    after: After = None,
    topics: Topics = None,
    limit: Annotated[int, Query(ge=1, le=MOST_EVENTS)] = DEFAULT_LIMIT,
    wait: Seconds = 0,
    last_event_id: AfterEvent = None,
) -> Response:
    """As Kafka has them, without Kafka. A stream sends `limit` at once, and has no `wait`."""
    published, token = await _published(request), last_event_id or after
    position = decode_position(token) if token else BEGINNING
    wanted = Wanted(_topics(topics), limit)
    address = subscriber(client_address(request.scope))
    if STREAM in (header(request.scope, b"accept") or ""):
        # What is refused, is before the stream begins.
        await published.check(position, wanted)
        reader = published.enter(caller.person, address)
        return EventStream(
            published.stream(reader, position, wanted), partial(published.leave, reader)
        )
    with published.reader(caller.person, address) as reader:
        page = await published.next(reader, position, wanted, wait)
    _count(page)
    body = b"[%b]" % b",".join(message.cloud_event() for message, _ in page.messages)
    told = {"Backlot-Position": encode_position(*page.position), "Vary": "Accept"}
    return Response(body, headers=told, media_type=BATCH)


def _topics(names: str | None) -> frozenset[str]:
    """Return the topics that are wanted; raise Problem 422 that names those that there are."""
    if names is None:
        return frozenset(TOPICS)
    wanted = frozenset(name.strip() for name in names.split(","))
    if unknown := sorted(wanted - TOPICS.keys()):
        told = f"There is no topic {', '.join(map(repr, unknown))}; there are "
        raise Problem(422, "invalid", f"{told}{', '.join(sorted(TOPICS))}.", field="topics")
    return wanted

"""Every search gives what a look at each event gives, however far the index has come."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from uuid import UUID

import psycopg
import pytest
from eventsourcing.persistence import StoredEvent
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from engine.inspection.index import Audit, EventPage, Search, find
from engine.inspection.streams import Entry, aggregate_of, read_entry, type_of
from engine.installation import install
from engine.log import END_OF_LOG, EventMapper
from tests.integration.audit_support import (
    ACTORS,
    AT,
    STREAMS,
    TOPICS,
    append,
    ask,
    body,
    index,
    log_of,
    random_log,
)
from tests.integration.event_log import events

COUNT = 1_500
MAPPER = EventMapper()
AUDIT = Audit()


def matches(entry: Entry, search: Search) -> bool:
    """The meaning of a search, told plainly."""
    stored, at = entry.stored, entry.recorded_at
    topic = stored.topic
    names = {topic, type_of(topic), aggregate_of(topic)}
    return (
        search.stream in (None, stored.stream_id)
        and search.aggregate in (None, aggregate_of(topic))
        and (not search.types or not names.isdisjoint(search.types))
        and search.actor in (None, entry.actor)
        and search.correlation_id in (None, entry.correlation_id)
        and (search.since is None or (at is not None and at >= search.since))
        and (search.until is None or (at is not None and at < search.until))
        and search.after < stored.position < search.before
    )


def some_search(chance: random.Random) -> Search:
    """Any conditions together; each is absent more often than not."""

    def maybe(likelihood: float) -> bool:
        return chance.random() < likelihood

    minutes = chance.randint(0, COUNT)
    types = [*TOPICS, "comment.posted", "comment", "video_likes", "no.such"]
    return Search(
        stream=chance.choice(STREAMS) if maybe(0.2) else None,
        aggregate=chance.choice(["comment", "upload", "odd"]) if maybe(0.2) else None,
        types=chance.sample(types, chance.randint(1, 3)) if maybe(0.4) else (),
        actor=chance.choice([*ACTORS, "nobody"]) if maybe(0.35) else None,
        correlation_id=f"request-{chance.randint(1, 10)}" if maybe(0.35) else None,
        since=AT + timedelta(minutes=minutes) if maybe(0.3) else None,
        until=AT + timedelta(minutes=minutes + chance.randint(1, 400)) if maybe(0.3) else None,
        after=chance.randint(0, COUNT) if maybe(0.2) else 0,
        before=chance.randint(1, COUNT) if maybe(0.2) else END_OF_LOG,
        newest_first=maybe(0.5),
    )


@pytest.mark.parametrize("count", [100, pytest.param(400, marks=pytest.mark.chaos)])
def test_a_search_finds_what_a_look_at_every_event_finds(
    empty_database_url: str, count: int
) -> None:
    """Whether nothing, a part, nearly all or all is in the index, which only grows."""
    append(empty_database_url, random_log(7, COUNT))
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        install(conn, [AUDIT])
    entries = [read_entry(stored) for stored in log_of(empty_database_url)]
    for indexed in (0, COUNT // 2, COUNT - 3, COUNT):
        index(empty_database_url, indexed, batch=97)
        chance = random.Random(indexed)
        searches = [some_search(chance) for _ in range(count)]
        check(empty_database_url, entries, searches)


def check(database_url: str, entries: Sequence[Entry], searches: Sequence[Search]) -> None:
    async def find_all(conn: AsyncConnection[TupleRow]) -> list[EventPage]:
        return [await find(conn, AUDIT, search, 40) for search in searches]

    for search, found in zip(searches, ask(database_url, find_all), strict=True):
        wanted = [entry.stored for entry in entries if matches(entry, search)]
        wanted = wanted[::-1] if search.newest_first else wanted
        assert found.events == wanted[:40], search
        following = wanted[39].position if len(wanted) > 40 else None
        assert found.following == following, search


def test_pages_stay_in_order_while_events_arrive(database_url: str) -> None:
    append(database_url, [by_ann(stream, n) for n in range(1, 6) for stream in STREAMS])
    index(database_url)
    count, seen, bound = 5 * len(STREAMS), list[int](), END_OF_LOG
    for version in range(6, 20):
        found = ask(database_url, partial(_page, Search(actor="ann", before=bound)))
        seen += [stored.position for stored in found.events]
        if found.following is None:
            break
        bound = found.following
        append(database_url, [by_ann(stream, version) for stream in STREAMS])
        if version % 2:
            index(database_url)
    assert seen == list(range(count, 0, -1))


def test_an_event_that_was_removed_by_hand_does_not_end_the_list(database_url: str) -> None:
    append(database_url, events(30))
    index(database_url)
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("DELETE FROM backlot_events WHERE notification_id IN (24, 21)")
    first = ask(database_url, partial(_page, Search(), limit=10))
    assert first.following is not None
    rest = ask(database_url, partial(_page, Search(before=first.following), limit=100))
    seen = [stored.position for stored in (*first.events, *rest.events)]
    assert seen == [at for at in range(30, 0, -1) if at not in (24, 21)]


def by_ann(stream: UUID, version: int) -> StoredEvent:
    return StoredEvent(stream, version, "comment.posted.v1", body(AT, "ann", "request"))


async def _page(search: Search, conn: AsyncConnection[TupleRow], limit: int = 7) -> EventPage:
    return await find(conn, AUDIT, search, limit)

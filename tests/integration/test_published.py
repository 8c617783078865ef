"""What services are told over HTTP: the relay's messages, each once, behind any position."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any

import psycopg
import pytest

import readapi.events
from engine.subscription import Notifications
from infra import metrics
from infra.http.problems import Problem
from infra.http.shapes import BEGINNING, InvalidPosition, Position, decode_position
from projections.integration_events import TOPICS, Message
from readapi.events import MessagePage, PublishedMessages, Wanted, read_page
from readapi.stream_slots import LiveLimits
from tests.integration.consuming_support import VIDEO, run
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer
from tests.integration.relay_support import (
    SEEN,
    Topics,
    relaying,
    watch,
    watch_everything,
    write_everything,
)
from tests.kafka_cluster import kafka_cluster
from tests.support import DEADLINE_SECONDS, ended, until

ALL = Wanted(frozenset(TOPICS), 1_000)


@pytest.fixture
def url(database_url: str, writer: Writer) -> str:
    return database_url


def read(url: str, after: Position = BEGINNING, wanted: Wanted = ALL) -> MessagePage:
    with psycopg.connect(url, autocommit=True) as conn:
        return read_page(conn, after, wanted)


def pages(url: str, limit: int) -> Iterator[MessagePage]:
    page = read(url, BEGINNING, ALL._replace(limit=limit))
    while page.messages:
        yield page
        page = read(url, page.position, ALL._replace(limit=limit))
    assert page.whole


def ids(messages: Any) -> list[str]:
    return [str(message.id) for message, _ in messages]


def as_kafka_has_it(message: Message) -> dict[str, Any]:
    """The record that a CloudEvent stands for."""
    event = json.loads(message.cloud_event())
    headers = {f"ce_{name}": event[name] for name in ("id", "type", "source", "time")}
    headers |= {"ce_specversion": event["specversion"], "content-type": event["datacontenttype"]}
    headers["position"] = event["position"]
    if "correlationid" in event:
        headers["correlationId"] = event["correlationid"]
    place = event["type"], event["partitionkey"]
    return {"place": place, "headers": headers, "value": event["data"]}


def test_services_are_told_what_kafka_is(url: str, writer: Writer) -> None:
    async def scenario() -> None:
        count = write_everything(writer) + await watch_everything(url)
        with kafka_cluster() as cluster:
            servers = cluster.bootstrap_servers
            async with relaying(url, servers), Topics(servers) as topics:
                await topics.until(count)
        records = [
            {
                "place": (record.partition.topic, (record.key or b"").decode()),
                "headers": {name: value.decode() for name, value in record.headers},
                "value": json.loads(record.value or b""),
            }
            for record in topics.records
        ]
        found = [as_kafka_has_it(message) for message, _ in read(url).messages]
        assert {each["place"][0] for each in found} == set(TOPICS)
        assert len(found) == count
        # In the same order within each key of each topic.
        for place in {each["place"] for each in records}:
            ours = [each for each in found if each["place"] == place]
            assert ours == [each for each in records if each["place"] == place]

    run(scenario)


def test_pages_of_any_length_have_everything_once(url: str, writer: Writer) -> None:
    async def scenario() -> None:
        write_everything(writer)
        await watch_everything(url)

    run(scenario)
    whole = read(url).messages
    assert len(set(ids(whole))) == len(whole)
    for limit in (1, 2, 7):
        found = list(pages(url, limit))
        assert ids(chain.from_iterable(page.messages for page in found)) == ids(whole)
        assert all(len(page.messages) <= limit for page in found)
    # Whoever goes on behind any one of them gets the others.
    for number, (_, at) in enumerate(whole, start=1):
        assert ids(read(url, at).messages) == ids(whole[number:])


def test_only_the_topics_that_are_wanted(url: str, writer: Writer) -> None:
    async def scenario() -> None:
        write_everything(writer)
        await watch_everything(url)

    run(scenario)
    whole = read(url)
    for topic in sorted(TOPICS):
        page = read(url, BEGINNING, Wanted(frozenset({topic}), 10))
        told = [message for message, _ in whole.messages if message.topic == topic]
        assert told
        assert [message for message, _ in page.messages] == told
        assert page.whole
        assert whole.position.covers(page.position)


def test_a_position_that_is_not_reached_yet_is_refused(url: str, writer: Writer) -> None:
    head = writer.like(VIDEO, "ann")
    assert read(url, Position(head)).messages == []
    with pytest.raises(InvalidPosition, match="behind the end of the log"):
        read(url, Position(head + 1))


def test_what_can_not_be_read_is_passed_over_and_counted(url: str, writer: Writer) -> None:
    writer.like(VIDEO, "ann", "bob", "cid")
    rows(url, "UPDATE backlot_events SET state = '{}' WHERE notification_id = 2 RETURNING 1")
    counted = "backlot_published_unreadable_total"
    before = metrics.value(counted, topic="video_likes.liked.v1")
    page = read(url)
    assert [message.position for message, _ in page.messages] == [1, 3]
    assert page.position == Position(3)
    assert metrics.value(counted, topic="video_likes.liked.v1") == before + 1


@asynccontextmanager
async def telling(url: str, limits: LiveLimits | None = None) -> AsyncIterator[PublishedMessages]:
    """What tells the services of a process, woken by what is recorded."""
    notifications = Notifications(url)
    published = PublishedMessages(url, notifications.subscribe(), limits)
    tasks = [asyncio.create_task(notifications.run()), asyncio.create_task(published.run())]
    try:
        yield published
    finally:
        await ended(*tasks)
        await published.aclose()


class Reads:
    """How often the log was read."""

    def __init__(self, published: PublishedMessages, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.read = published._read_now
        monkeypatch.setattr(published, "_read_now", self)

    def __call__(self, after: Position, wanted: Wanted) -> MessagePage:
        self.count += 1
        return self.read(after, wanted)


def test_a_wait_ends_with_the_next_message_and_asks_nothing_in_between(
    url: str, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readapi.events, "POLL_SECONDS", 10 * DEADLINE_SECONDS)
    monkeypatch.setattr(readapi.events, "GATHER_SECONDS", 0.0)

    async def scenario() -> None:
        async with telling(url) as published:
            reads = Reads(published, monkeypatch)
            with published.reader("svc", "there") as reader:
                waits = published.next(reader, BEGINNING, ALL, 10 * DEADLINE_SECONDS)
                waiting = asyncio.create_task(waits)
                await until(lambda: reads.count >= 1)
                await asyncio.to_thread(writer.like, VIDEO, "ann")
                async with asyncio.timeout(DEADLINE_SECONDS):
                    page = await waiting
            assert [message.topic for message, _ in page.messages] == ["video.liked"]
            # Once at first, once since the listener begins meanwhile, once for what came.
            assert reads.count <= 3

    run(scenario)


def test_nothing_is_woken_while_no_service_is_here(url: str, writer: Writer) -> None:
    async def scenario() -> None:
        wake = asyncio.Event()
        published = PublishedMessages(url, wake)
        woken = asyncio.create_task(published.run())
        wake.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert wake.is_set()
        with published.reader("svc", "there") as reader:
            await until(reader.changed.is_set)
            assert not wake.is_set()
        await ended(woken)
        await published.aclose()

    run(scenario)


def test_a_wait_in_vain_ends_in_time(url: str, writer: Writer) -> None:
    writer.upload()
    head = writer.head

    async def scenario() -> None:
        async with telling(url) as published:
            with published.reader("svc", "there") as reader:
                page = await published.next(reader, BEGINNING, ALL, 0.05)
        assert (page.messages, page.position, page.whole) == ([], Position(head), True)

    run(scenario)


def test_a_rare_topic_is_found_behind_all_others(
    url: str, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readapi.events, "LEAST_READ", 1)
    monkeypatch.setattr(readapi.events, "LOOK_SECONDS", DEADLINE_SECONDS)
    for number in range(30):
        writer.like(VIDEO, f"viewer-{number}")
    writer.comment(VIDEO)
    wanted = Wanted(frozenset({"comment.created"}), 1)
    assert not read(url, BEGINNING, wanted).whole

    async def scenario() -> None:
        async with telling(url) as published:
            with published.reader("svc", "there") as reader:
                page = await published.next(reader, BEGINNING, wanted, 0)
        assert [message.position for message, _ in page.messages] == [31]

    run(scenario)


def test_a_stream_goes_on_where_another_one_was_cut(url: str, writer: Writer) -> None:
    async def scenario() -> None:
        write_everything(writer)
        whole = ids(read(url).messages)
        async with telling(url) as published:
            found: list[str] = []
            position, wanted = BEGINNING, ALL._replace(limit=3)
            while len(found) < len(whole) + 1:
                reader = published.enter("svc", "there")
                stream = published.stream(reader, position, wanted)
                async with asyncio.timeout(DEADLINE_SECONDS):
                    # Two at a time, so that it is cut within a batch.
                    for _ in range(2):
                        told = await next_event(stream)
                        position = decode_position(told["id"])
                        found.append(json.loads(told["data"])["id"])
                        if len(found) == len(whole):
                            await watch(url, SEEN)
                        elif len(found) > len(whole):
                            break
                await stream.aclose()
            assert found == [*whole, str(SEEN.event_id)]
            # Whoever went has left nothing.
            assert metrics.value("backlot_published_readers") == 0

    run(scenario)


async def next_event(stream: AsyncIterator[bytes]) -> dict[str, str]:
    async for piece in stream:
        text = piece.decode()
        if text.startswith("id: "):
            fields = dict(line.split(": ", 1) for line in text.rstrip("\n").split("\n"))
            assert list(fields) == ["id", "event", "data"]
            assert json.loads(fields["data"])["type"] == fields["event"]
            return fields
    raise AssertionError("The stream has ended.")


def test_a_silent_stream_says_how_far_it_is_and_ends_with_the_server(
    url: str, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readapi.events, "HEARTBEAT_SECONDS", 0.05)
    writer.upload()

    async def scenario() -> None:
        async with telling(url) as published:
            stream = published.stream(published.enter("svc", "there"), BEGINNING, ALL)
            async with asyncio.timeout(DEADLINE_SECONDS):
                assert await anext(stream) == b"retry: 2000\n\n"
                _, told, *_ = (await anext(stream)).decode().split("\n")
                assert decode_position(told.removeprefix("id: ")) == Position(writer.head)
                await published.close()
                assert [piece async for piece in stream if b"data" in piece] == []
            with pytest.raises(Problem):
                published.enter("svc", "there")

    run(scenario)


def test_a_lost_connection_to_the_database_costs_nothing(url: str, writer: Writer) -> None:
    async def scenario() -> None:
        async with telling(url) as published:
            with published.reader("svc", "there") as reader:
                writer.like(VIDEO, "ann")
                first = await published.next(reader, BEGINNING, ALL, 0)
                assert rows(
                    url,
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND application_name LIKE %s",
                    ("%published messages%",),
                )
                writer.like(VIDEO, "bob")
                second = await published.next(reader, first.position, ALL, DEADLINE_SECONDS)
        assert [len(page.messages) for page in (first, second)] == [1, 1]

    run(scenario)


def test_a_service_has_so_many_streams_at_once(url: str, writer: Writer) -> None:
    async def scenario() -> None:
        async with telling(url, LiveLimits(per_user=2, per_address=3)) as published:
            held = [published.enter("svc", "there") for _ in range(2)]
            with pytest.raises(Problem) as refused:
                published.enter("svc", "elsewhere")
            assert (refused.value.status, refused.value.slug) == (429, "too-many-streams")
            published.leave(held[0])
            published.leave(held[0])
            published.enter("svc", "there")

    run(scenario)

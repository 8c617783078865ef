"""Webhooks: each message comes at least once, in order per key, signed, and to nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack, closing
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

import workers.webhooks
from commands.webhooks import (
    AlterWebhook,
    RemoveWebhook,
    RepeatDelivery,
    RotateWebhookSecret,
    SkipDelivery,
    TryWebhook,
)
from domain.errors import Conflict, NotFound
from engine.event_store import open_recorder
from engine.persons import Persons
from infra import metrics
from infra.http.shapes import BEGINNING
from projections.integration_events import TOPICS, VIDEO_LIKED
from projections.webhooks import prune
from readapi.events import Wanted, read_page
from readapi.webhooks import WebhookSource, load_webhooks
from tests.integration.consuming_support import run
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer
from tests.integration.relay_support import watch_everything, write_everything
from tests.integration.webhook_support import (
    Desk,
    Received,
    Receiver,
    receiving,
    sending,
    webhook_tables,
)
from tests.support import until


@pytest.fixture
def persons(database_url: str, writer: Writer) -> Iterator[Persons]:
    with webhook_tables(database_url) as opened:
        yield opened


def published(url: str) -> dict[str, bytes]:
    """What `GET /events` tells, by id."""
    with psycopg.connect(url, autocommit=True) as conn:
        page = read_page(conn, BEGINNING, Wanted(frozenset(TOPICS), 1_000))
    return {str(message.id): message.cloud_event() for message, _ in page.messages}


def likes_of(writer: Writer, count: int, *videos: UUID) -> None:
    for number in range(count):
        writer.save(*(writer.wish("like", video, f"viewer-{number}") for video in videos))


def test_all_topics_are_delivered_as_services_read_them_and_signed(
    database_url: str, writer: Writer, persons: Persons
) -> None:
    async def scenario() -> None:
        write_everything(writer)
        await watch_everything(database_url)
        wanted = published(database_url)
        async with receiving() as receiver, sending(database_url, persons) as desk:
            webhook = await desk.add(receiver.url, *TOPICS)
            await desk.until_taken(receiver, wanted)
            (secret,) = desk.secrets(webhook)
            await until(lambda: not desk.deliveries("waiting"))
            await until(lambda: lag(webhook) == 0)
        assert {each.id: each.body for each in receiver.taken} == wanted
        assert len(receiver.taken) == len(wanted)
        for each in receiver.taken:
            assert each.signed_by(secret)
            assert not each.signed_by(b"another")
            assert each.headers["content-type"] == "application/cloudevents+json"

    run(scenario)


def tried_thrice(desk: Desk) -> int:
    """How many deliveries wait for their long pause: what comes of an attempt is written down."""
    return sum(attempts == 3 for _, _, attempts, _ in desk.deliveries("waiting"))


def lag(webhook: UUID, what: str = "events") -> float:
    return metrics.value(f"backlot_webhook_lag_{what}", webhook=str(webhook))


def test_what_fails_holds_back_its_key_alone_and_keeps_the_order(
    database_url: str, writer: Writer, persons: Persons
) -> None:
    async def scenario() -> None:
        videos = [uuid4() for _ in range(4)]
        bad, refusing = str(videos[0]), [True]

        def answer(received: Received) -> tuple[int, dict[str, str]]:
            return (503 if refusing[0] and received.key == bad else 200), {}

        likes_of(writer, 12, *videos)
        async with receiving(answer) as receiver, sending(database_url, persons) as desk:
            webhook = await desk.add(receiver.url, VIDEO_LIKED)
            await until(lambda: len(receiver.taken) == 36 and len(receiver.all) == 39)
            # Of the key that fails, nothing but its first was tried.
            assert len({each.id for each in receiver.all if each.key == bad}) == 1
            await until(lambda: len(desk.deliveries("waiting")) == 12 and tried_thrice(desk) == 1)
            await until(lambda: lag(webhook) == 12 and lag(webhook, "seconds") > 0)
            refusing[0] = False
            await desk.do(AlterWebhook(webhook, enabled=True))
            await until(lambda: len(receiver.taken) == 48)
        assert len(receiver.by_key()) == 4
        for positions in receiver.by_key().values():
            assert len(positions) == 12
            assert positions == sorted(positions)

    run(scenario)


def test_a_restart_delivers_nothing_again_and_a_crash_what_was_under_way(
    database_url: str, writer: Writer, persons: Persons
) -> None:
    async def scenario() -> None:
        video = uuid4()
        async with receiving() as receiver:
            likes_of(writer, 5, video)
            async with sending(database_url, persons) as desk:
                await desk.add(receiver.url, VIDEO_LIKED)
                await until(lambda: len(desk.deliveries("delivered")) == 5)
            # As if it had been killed between the answer and its writing it down.
            with psycopg.connect(database_url, autocommit=True) as conn:
                conn.execute(
                    "UPDATE webhooks.deliveries SET status = 'waiting' WHERE delivery_id = "
                    "(SELECT max(delivery_id) FROM webhooks.deliveries)"
                )
            writer.like(video, "late")
            async with sending(database_url, persons) as desk:
                await until(lambda: len(desk.deliveries("delivered")) == 6)
        (positions,) = receiver.by_key().values()
        assert positions == sorted(positions)
        assert len(receiver.taken) == 7
        assert receiver.ids[4] == receiver.ids[5]

    run(scenario)


def test_another_process_takes_over_where_one_ends(
    database_url: str, writer: Writer, persons: Persons
) -> None:
    async def scenario() -> None:
        video = uuid4()
        async with receiving() as receiver, AsyncExitStack() as others:
            async with sending(database_url, persons) as desk:
                await desk.add(receiver.url, VIDEO_LIKED)
                likes_of(writer, 3, video)
                await until(lambda: len(desk.deliveries("delivered")) == 3)
                other = await others.enter_async_context(sending(database_url, persons))
                writer.like(video, "side by side")
                await until(lambda: len(desk.deliveries("delivered")) == 4)
            writer.like(video, "late")
            await until(lambda: len(other.deliveries("delivered")) == 5)
        (positions,) = receiver.by_key().values()
        assert positions == sorted(positions)
        # Neither has sent what the other had.
        assert len(receiver.taken) == len(positions) == 5

    run(scenario)


@pytest.mark.parametrize(("status", "reason"), [(410, "gone"), (500, "failing")])
def test_it_is_disabled_and_goes_on_where_it_was_once_enabled(
    database_url: str, writer: Writer, persons: Persons, status: int, reason: str
) -> None:
    async def scenario() -> None:
        answers = [status]
        likes_of(writer, 3, uuid4())
        async with (
            receiving(lambda _: (answers[0], {})) as receiver,
            sending(database_url, persons, retry_seconds=(0.01, 0.01)) as desk,
        ):
            webhook = await desk.add(receiver.url, VIDEO_LIKED)
            await until(lambda: not desk.is_enabled(webhook))
            # One attempt at once, and one behind each pause.
            assert len(receiver.all) == (1 if status == 410 else 3)
            query = "SELECT convert_from(state, 'UTF8') FROM backlot_events WHERE topic = %s"
            ((told,),) = rows(database_url, query, ["webhooks.disabled.v1"])
            assert f'"reason":"{reason}"' in told
            await until(lambda: metrics.value("backlot_webhooks_disabled") == 1)
            likes_of(writer, 3, uuid4())
            await until(lambda: lag(webhook) > 3)
            answers[0] = 200
            await desk.do(AlterWebhook(webhook, enabled=True))
            await until(lambda: len(receiver.taken) == 6)
            await until(lambda: metrics.value("backlot_webhooks_disabled") == 0)

    run(scenario)


def test_a_secret_is_rotated_with_an_overlap(
    database_url: str, writer: Writer, persons: Persons
) -> None:
    async def scenario() -> None:
        async with receiving() as receiver, sending(database_url, persons) as desk:
            webhook = await desk.add(receiver.url, VIDEO_LIKED)
            (first,) = desk.secrets(webhook)
            await desk.do(RotateWebhookSecret(webhook, uuid4(), timedelta(hours=1)))
            writer.like(uuid4(), "ann")
            await until(lambda: len(receiver.taken) == 1)
            second, former = desk.secrets(webhook)
            assert former == first
            assert receiver.taken[0].signed_by(first)
            assert receiver.taken[0].signed_by(second)
            await desk.do(RotateWebhookSecret(webhook, uuid4(), timedelta()))
            writer.like(uuid4(), "ann")
            await until(lambda: len(receiver.taken) == 2)
            third = desk.secrets(webhook)[0]
            signed = [receiver.taken[1].signed_by(each) for each in (first, second, third)]
            assert signed == [False, False, True]

    run(scenario)


def test_deliveries_are_tried_repeated_skipped_and_forgotten(
    database_url: str, writer: Writer, persons: Persons
) -> None:
    async def scenario() -> None:
        video, refused = uuid4(), set[str]()

        def answer(received: Received) -> tuple[int, dict[str, str]]:
            return (422 if received.id in refused else 200), {}

        async with receiving(answer) as receiver, sending(database_url, persons) as desk:
            webhook = await desk.add(receiver.url, VIDEO_LIKED, after=None)
            tried = await desk.do(TryWebhook(webhook, uuid4()))
            await desk.until_taken(receiver, [str(tried.message_id)])
            assert receiver.taken[0].event["type"] == "webhook.test"
            writer.like(video, "ann")
            await until(lambda: len(receiver.taken) == 2)
            await until(lambda: len(desk.deliveries("delivered")) == 2)
            _, (liked, *_) = desk.deliveries("delivered")
            with pytest.raises(Conflict):
                await desk.do(SkipDelivery(webhook, liked))
            for asks in (RepeatDelivery, SkipDelivery):
                for where in ((webhook, liked + 1_000), (uuid4(), liked)):
                    with pytest.raises(NotFound):
                        await desk.do(asks(*where))
            await desk.do(RepeatDelivery(webhook, liked))
            await until(lambda: receiver.ids[1:] == [receiver.ids[1]] * 2)
            poison, behind = (
                writer.wish("like", video, viewer).pending_events[0] for viewer in ("bob", "eve")
            )
            refused.add(event_name(poison))
            writer.save(*(writer.wish("like", video, viewer) for viewer in ("bob", "eve")))
            await until(lambda: any(each[3] == 422 for each in desk.deliveries("waiting")))
            (stuck, *_), *_ = desk.deliveries("waiting")
            with pytest.raises(Conflict):
                await desk.do(RepeatDelivery(webhook, stuck))
            await desk.do(SkipDelivery(webhook, stuck))
            await desk.until_taken(receiver, [event_name(behind)])
            assert [each[0] for each in desk.deliveries("skipped")] == [stuck]
            await until(lambda: len(desk.deliveries("delivered")) == 4)
            with psycopg.connect(database_url, autocommit=True) as conn:
                (now,) = conn.execute("SELECT now()").fetchone() or (None,)
                assert prune(conn, now - timedelta(days=1), 2) == 3
                assert prune(conn, now, 2) == 2
            await desk.do(RemoveWebhook(webhook))
            kept = "SELECT subscription FROM backlot_checkpoints WHERE kind = 'webhook'"
            await until(lambda: rows(database_url, kept) == [("webhooks",)])

    run(scenario)


def test_operators_read_only_what_is_new_of_webhooks(
    database_url: str, persons: Persons, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with receiving() as receiver, sending(database_url, persons) as desk:
            webhook = await desk.add(receiver.url, VIDEO_LIKED)
            for _ in range(10):
                await desk.do(RotateWebhookSecret(webhook, uuid4()))
            with closing(open_recorder(database_url)) as recorder:
                fetch, loaded = recorder.fetch, list[int]()

                def counted(*given: Any) -> Any:
                    found = fetch(*given)
                    loaded.append(len(found.rows))
                    return found

                monkeypatch.setattr(recorder, "fetch", counted)
                source = WebhookSource(recorder, persons)
                before = (await source.read()).get(webhook)
                await desk.do(RotateWebhookSecret(webhook, uuid4()))
                after = (await source.read()).get(webhook)
                assert after != before
                assert after == load_webhooks(desk.recorder).get(webhook)
                assert (await source.read()).by_id == {webhook: after}
                assert loaded == [11, 1, 0]

    run(scenario)


def event_name(event: object) -> str:
    from engine.log import event_id

    return str(event_id(event.originator_id, event.originator_version))  # type: ignore[attr-defined]


def test_nobody_is_called_at_an_address_that_is_not_public(
    database_url: str, writer: Writer, persons: Persons
) -> None:
    async def scenario() -> None:
        before = metrics.value("backlot_webhook_attempts_total", outcome="forbidden")
        writer.like(uuid4(), "ann")
        async with (
            receiving() as receiver,
            sending(database_url, persons, allowed_networks=()) as desk,
        ):
            # Added while it was allowed, or a name that means something else by now.
            await desk.add(f"http://localhost:{receiver.port}/hook", VIDEO_LIKED)
            await until(
                lambda: (
                    metrics.value("backlot_webhook_attempts_total", outcome="forbidden") > before
                )
            )
            assert receiver.all == []

    run(scenario)


def test_what_waits_is_bounded_and_the_log_is_the_queue(
    database_url: str, writer: Writer, persons: Persons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.webhooks, "MOST_WAITING", 20)
    monkeypatch.setattr(workers.webhooks, "READ_EVENTS", 5)

    async def scenario() -> None:
        answers = [503]
        likes_of(writer, 10, *(uuid4() for _ in range(8)))
        async with (
            receiving(lambda _: (answers[0], {})) as receiver,
            sending(database_url, persons) as desk,
        ):
            webhook = await desk.add(receiver.url, VIDEO_LIKED)
            await until(lambda: len(receiver.all) == 3 * 8 and tried_thrice(desk) == 8)
            assert len(desk.deliveries("waiting")) == 15
            await until(lambda: lag(webhook) >= 80)
            answers[0] = 200
            await desk.do(AlterWebhook(webhook, enabled=True))
            await until(lambda: len(set(receiver.ids)) == 80)
        assert_in_order(receiver, 10)

    run(scenario)


def assert_in_order(receiver: Receiver, each: int) -> None:
    for positions in receiver.by_key().values():
        assert len(positions) == each
        assert positions == sorted(positions)

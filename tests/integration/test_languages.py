"""Languages of comments on a real log: what is recorded at once, and what is left to tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from engine.connections import connect
from engine.messages import IncomingMessage
from infra.settings import load_settings
from tests.integration.buses import decided, open_bus
from tests.integration.event_log import logged
from tests.integration.projection_support import Writer
from workers.languages import TranslationConsumer, make_consumer
from workers.sources import feeds, received

ENGLISH = "This is a wonderful film, thank you so much for it!"
SPANISH = "¡Qué bonito es este vídeo, muchas gracias a todos!"


class Queue:
    """Takes tasks, and remembers them."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send_with_options(self, **options: Any) -> SimpleNamespace:
        self.sent.append(options)
        return SimpleNamespace(message_id="1")

    @property
    def comments(self) -> list[UUID]:
        return [UUID(each["args"][0]) for each in self.sent]


class Desk:
    """A log with a video, and the consumer on it."""

    def __init__(self, database_url: str, writer: Writer) -> None:
        self.database_url, self.writer = database_url, writer
        self.video = writer.video().id
        self.queue = Queue()
        self.settings: dict[str, str] = {"TRANSLATION_EDIT_SECONDS": "0"}
        self.translates = True

    def comment(self, content: str) -> UUID:
        return self.writer.comment(self.video, "bob", content).id

    def messages(self) -> list[IncomingMessage]:
        with connect(self.database_url, "test") as conn:
            (feed,) = feeds(TranslationConsumer.topics, batch_events=1000)
            return [received(feed.name, each) for each in feed.read(conn, 0).messages]

    def consume(self, messages: Sequence[IncomingMessage] | None = None, **options: Any) -> None:
        """Have all that was recorded handled, as after a start."""

        async def scenario() -> None:
            async with open_bus(self.writer.recorder, **options) as bus:
                consumer = make_consumer(
                    load_settings(self.settings).translation,
                    self.queue,  # type: ignore[arg-type]
                    bus,
                    translates=self.translates,
                )
                await consumer.handle(self.messages() if messages is None else messages)

        asyncio.run(scenario())

    def kinds(self, comment: UUID) -> list[str]:
        return decided(self.database_url, comment)

    def last(self, comment: UUID) -> dict[str, Any]:
        stored = [e for e in logged(self.database_url).values() if e.originator_id == comment][-1]
        return vars(self.writer.mapper.to_domain_event(stored))


@pytest.fixture
def desk(database_url: str, writer: Writer) -> Desk:
    return Desk(database_url, writer)


class TestRecorded:
    def test_in_the_target_language(self, desk: Desk) -> None:
        comment = desk.comment(ENGLISH)
        desk.consume()
        assert desk.kinds(comment) == ["posted", "language_detected"]
        assert desk.last(comment)["language"] == "en"
        assert desk.queue.sent == []

"""Languages of comments on a real log: what is recorded at once, and what is left to tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, NoReturn
from uuid import UUID

import pytest
from eventsourcing.persistence import OperationalError, StoredEvent

from domain.moderation import ActingAs
from engine.connections import connect
from engine.log import event_id
from engine.messages import IncomingMessage
from infra import metrics
from infra.batcher import QueueFull
from infra.language.detector import Detection, TextDetector
from infra.settings import load_settings
from projections.feeds import feeds
from tests.integration.buses import decided, open_bus
from tests.integration.event_log import logged
from tests.integration.projection_support import Writer, origin
from workers.sources import received
from workers.translation import TranslationConsumer, make_consumer, may_translate

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
    """What needs no provider is recorded where it is read, and no task is sent."""

    def test_in_the_target_language(self, desk: Desk) -> None:
        comment = desk.comment(ENGLISH)
        desk.consume()
        assert desk.kinds(comment) == ["posted", "language_detected"]
        last = desk.last(comment)
        assert (last["language"], last["target_language"], last["actor"]) == (
            "en",
            "en",
            "translation",
        )
        assert last["detector"] == TextDetector(0).name
        assert last["correlation_id"] == "correlation"
        assert last["causation_id"] == str(event_id(comment, 1))
        assert desk.queue.sent == []

    @pytest.mark.parametrize("content", ["🎬🎬", "https://example.org", "1:23", "lol"])
    @pytest.mark.parametrize("detector", ["text", "whisper"])
    def test_without_words(self, desk: Desk, content: str, detector: str) -> None:
        desk.settings["LANGUAGE_DETECTOR"] = detector
        comment = desk.comment(content)
        desk.consume()
        assert (desk.last(comment)["needed"], desk.last(comment)["reason"]) == (False, "no_words")
        assert desk.queue.sent == []

    def test_where_nobody_translates(self, desk: Desk) -> None:
        desk.translates = False
        comment = desk.comment(SPANISH)
        desk.consume()
        assert desk.kinds(comment) == ["posted", "language_detected", "translation_skipped"]
        assert desk.last(comment)["reason"] == "no_language_model"
        assert desk.queue.sent == []

    def test_where_nobody_translates_the_best_guess_stands(self, desk: Desk) -> None:
        desk.translates = False
        desk.settings["LANGUAGE_TARGET_CONFIDENCE"] = "1"
        comment = desk.comment(ENGLISH)
        desk.consume()
        assert desk.kinds(comment) == ["posted", "language_detected"]

    def test_many_in_few_transactions(self, desk: Desk) -> None:
        comments = [desk.comment(f"{ENGLISH} {number}") for number in range(300)]
        batches = metrics.value("backlot_command_batch_seconds_count")
        desk.consume()
        # Three times 128: each is looked up at once, and recorded at once.
        assert metrics.value("backlot_command_batch_seconds_count") - batches == 6
        for comment in comments:
            assert desk.kinds(comment) == ["posted", "language_detected"]

    def test_once_however_often_the_message_comes(self, desk: Desk) -> None:
        comment = desk.comment(ENGLISH)
        done = metrics.value("backlot_translations_total", outcome="done_before")
        for _ in range(2):
            desk.consume()
        assert desk.kinds(comment) == ["posted", "language_detected"]
        assert metrics.value("backlot_translations_total", outcome="done_before") == done + 1

    def test_the_text_as_it_stands(self, desk: Desk) -> None:
        comment = desk.writer.comment(desk.video, "bob", SPANISH)
        comment.edit(ENGLISH, origin("bob"))
        desk.writer.save(comment)
        assert len(desk.messages()) == 2
        desk.consume()
        assert desk.kinds(comment.id) == ["posted", "edited", "language_detected"]
        assert desk.last(comment.id)["revision"] == 2
        assert desk.queue.sent == []


class TestLeft:
    """What takes a provider is left to a task, as is what can't be dealt with."""

    def test_in_another_language(self, desk: Desk) -> None:
        comment, english = desk.comment(SPANISH), desk.comment(ENGLISH)
        desk.consume()
        assert desk.kinds(comment) == ["posted", "language_detected"]
        assert desk.last(comment)["language"] == "es"
        assert desk.kinds(english) == ["posted", "language_detected"]
        assert desk.queue.comments == [comment]
        assert desk.queue.sent[0]["correlation_id"] == "correlation"
        assert desk.queue.sent[0]["causation_id"] == str(event_id(comment, 1))
        desk.consume()
        assert desk.kinds(comment) == ["posted", "language_detected"], "once"
        assert desk.queue.comments == [comment, comment], "a task that is sent twice does no harm"

    def test_what_may_be_in_the_target_language(self, desk: Desk) -> None:
        desk.settings["LANGUAGE_TARGET_CONFIDENCE"] = "1"
        comment = desk.comment(ENGLISH)
        desk.consume()
        assert desk.kinds(comment) == ["posted"]
        assert desk.queue.comments == [comment]

    @pytest.mark.parametrize("detector", ["whisper", "llm"])
    def test_what_a_slow_detector_has_to_look_at(self, desk: Desk, detector: str) -> None:
        desk.settings["LANGUAGE_DETECTOR"] = detector
        comment = desk.comment(ENGLISH)
        desk.consume()
        assert desk.kinds(comment) == ["posted"]
        assert desk.queue.comments == [comment]

    def test_an_edit_until_its_author_has_left_it_alone(self, desk: Desk) -> None:
        desk.settings["TRANSLATION_EDIT_SECONDS"] = "3600"
        posted = desk.comment(ENGLISH)
        comment = desk.writer.comment(desk.video, "bob", SPANISH)
        comment.edit(ENGLISH, replace(origin("bob"), at=datetime.now(UTC)))
        desk.writer.save(comment)
        desk.consume()
        assert desk.kinds(posted) == ["posted", "language_detected"]
        assert desk.kinds(comment.id) == ["posted", "edited"]
        assert desk.queue.comments == [comment.id], "one for both of its messages"

    def test_a_text_that_breaks_the_detector(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def breaks(self: TextDetector, spoken: str) -> Detection | None:
            if "Qué" in spoken:
                raise ValueError("what is that?")
            return Detection("en", 1.0)

        monkeypatch.setattr(TextDetector, "detect_words", breaks)
        comment, english = desk.comment(SPANISH), desk.comment(ENGLISH)
        desk.consume()
        assert desk.kinds(comment) == ["posted"]
        assert desk.queue.comments == [comment]
        assert desk.kinds(english) == ["posted", "language_detected"]

    def test_streams_that_a_newer_release_has_written(self, desk: Desk) -> None:
        comment, messages = desk.comment(ENGLISH), desk.messages()
        newer = StoredEvent(comment, 2, "comment.sung.v1", b"{}")
        desk.writer.recorder.insert_events([newer])
        desk.consume(messages)
        assert desk.queue.comments == [comment]


class TestNothing:
    """What is gone costs nothing."""

    def test_deleted(self, desk: Desk) -> None:
        comment = desk.writer.comment(desk.video, "bob", SPANISH)
        comment.delete(origin("bob"))
        desk.writer.save(comment)
        desk.consume()
        assert desk.kinds(comment.id) == ["posted", "deleted"]
        assert desk.queue.sent == []

    def test_with_its_video(self, desk: Desk) -> None:
        video = desk.writer.video()
        comment = desk.writer.comment(video.id, "bob", SPANISH).id
        video.remove(origin())
        desk.writer.save(video)
        desk.consume()
        assert desk.kinds(comment) == ["posted"]
        assert desk.queue.sent == []

    def test_removed_by_a_moderator(self, desk: Desk) -> None:
        comment = desk.writer.comment(desk.video, "bob", ENGLISH)
        comment.remove(ActingAs.OWNER, None, origin("alice"))
        desk.writer.save(comment)
        desk.consume()
        assert desk.kinds(comment.id) == ["posted", "removed"]
        assert desk.queue.sent == []


class TestTrouble:
    def test_a_bus_that_takes_few_is_asked_again_and_goes_on(self, desk: Desk) -> None:
        comments = [desk.comment(f"{ENGLISH} {number}") for number in range(25)]
        refused = 0
        for _ in range(3):
            try:
                desk.consume(max_waiting=10)
            except QueueFull:
                refused += 1
        assert refused == 2
        for comment in comments:
            assert desk.kinds(comment) == ["posted", "language_detected"]
        assert desk.queue.sent == []

    @pytest.mark.parametrize("step", ["fetch", "append"])
    def test_nothing_is_sent_while_the_event_store_is_away(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        desk.comment(SPANISH)
        messages = desk.messages()

        def away(*_: object) -> NoReturn:
            raise OperationalError("the server closed the connection")

        monkeypatch.setattr(desk.writer.recorder, step, away)
        with pytest.raises(OperationalError):
            desk.consume(messages)
        assert desk.queue.sent == []


class TestHere:
    """Whether this process may say that nobody translates."""

    @pytest.mark.parametrize(
        ("roles", "url", "translates"),
        [
            ("consumers,tasks", None, False),
            ("consumers,tasks", "http://127.0.0.1:1", True),
            ("consumers", None, True),
        ],
    )
    def test_others_may_have_a_model(self, roles: str, url: str | None, translates: bool) -> None:
        model = {} if url is None else {"OPENAI_BASE_URL": url}
        assert may_translate(load_settings({"BACKLOT_ROLES": roles, **model})) is translates

"""Comments in the language that a reader chooses, and what is sent to have them translated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from dramatiq.errors import BrokerConnectionError
from redis import RedisError

from domain.comment import Comment
from infra import metrics
from infra.settings import load_settings
from projections.catalog import Catalog
from projections.comments import Comments
from projections.likes import Likes
from projections.translation import Translations
from readapi.translation import preferred
from tests.integration.projection_support import hosting, origin
from tests.integration.readapi_support import Site
from tests.support import ended, until

ROBOT = origin("translation")
CHOICE = {"TRANSLATION_TARGETS": "de,fr", "TRANSLATION_OVERDUE_SECONDS": "60"}


class Message:
    message_id = "1"


class Sent:
    """A task that tells what it was sent for; so many times its broker is away."""

    def __init__(self, away: int = 0) -> None:
        self.messages: list[tuple[UUID, str]] = []
        self.origins: set[str] = set()
        self.away = away

    def send_with_options(self, args: tuple[str, str], **options: str) -> Message:
        if self.away:
            self.away -= 1
            raise BrokerConnectionError("away")  # type: ignore[no-untyped-call]
        comment, language = args
        self.messages.append((UUID(comment), language))
        self.origins |= set(options.values())
        return Message()


class Desk:
    """A site whose readers may choose, with a video, and a robot that records translations."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.video = site.writer.video().id
        self.path = f"/videos/{self.video}/comments"
        self.running: asyncio.Task[None] | None = None

    def comment(self, content: str = "¡Qué bonito!", language: str | None = "es") -> Comment:
        """One whose language is known, and that is translated into English."""
        comment = self.site.writer.comment(self.video, "bob", content)
        if language is not None:
            comment.detect_language(1, language, 0.99, "lite", "en", ROBOT)
            if language != "en":
                comment.translate(1, language, "en", "How pretty!", "model", "v1", ROBOT)
            self.site.writer.save(comment)
        return comment

    def tell(self, comment: Comment, tell: Callable[[Comment], None]) -> None:
        tell(comment)
        self.site.writer.save(comment)

    def read(self, language: str | None = None, **more: Any) -> list[tuple[str, str | None]]:
        """Status and translation of each comment, newest first."""
        params: dict[str, Any] = {} if language is None else {"lang": language}
        items = self.site.get(self.path, **params, **more).json()["items"]
        return [(item["translationStatus"], item.get("translatedText")) for item in items]

    def serve(self, sent: Sent) -> Sent:
        """Have tasks sent from now on."""
        requests = self.site.queries.requests

        async def start() -> None:
            self.running = asyncio.create_task(requests.run(cast("Any", sent)))
            await until(lambda: requests._served)

        self.site.run(start())
        return sent

    def settle(self) -> None:
        """Wait until whatever was read has been dealt with."""
        self.site.run(self.site.queries.requests._waiting.join())

    def close(self) -> None:
        if self.running is not None:
            self.site.run(ended(self.running))


@pytest.fixture
def desk(database_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Desk]:
    more = getattr(request, "param", {})
    site = Site(database_url, tmp_path, settings=load_settings({**CHOICE, **more}))
    try:
        with hosting(database_url, Catalog(), Likes(), Comments(), Translations()):
            opened = Desk(site)
            yield opened
            opened.close()
    finally:
        site.close()


def requests(outcome: str) -> float:
    return metrics.value("backlot_translation_requests_total", outcome=outcome)


class TestChoice:
    def test_without_a_choice_all_is_as_ever(self, desk: Desk) -> None:
        desk.comment()
        answer = desk.site.get(desk.path)
        [item] = answer.json()["items"]
        assert (item["translationStatus"], item["translatedText"]) == ("translated", "How pretty!")
        assert answer.headers["Vary"] == "Authorization, Accept-Language"
        assert "Content-Language" not in answer.headers

    @pytest.mark.parametrize(
        "lang", ["it", "", "DE", "de-AT", "german", "d", "de,fr", "*", "\u00e9\u00e9"]
    )
    def test_a_language_that_nobody_translates_to(self, desk: Desk, lang: str) -> None:
        answer = desk.site.get(desk.path, lang=lang)
        assert (answer.status_code, answer.json()["type"]) == (422, "invalid")
        assert "en, de, fr" in answer.json()["detail"]
        assert answer.json()["errors"][0]["field"] == "lang"

    @pytest.mark.parametrize("desk", [{"TRANSLATION_TARGETS": ""}], indirect=True)
    def test_without_targets_there_is_one_language(self, desk: Desk) -> None:
        desk.comment()
        sent = desk.serve(Sent())
        assert desk.read("en") == [("translated", "How pretty!")]
        assert desk.site.get(desk.path, lang="de").status_code == 422
        assert desk.read(headers={"Accept-Language": "de"}) == [("translated", "How pretty!")]
        desk.settle()
        assert sent.messages == []

    def test_the_language_that_every_comment_gets_is_one_of_them(self, desk: Desk) -> None:
        desk.comment()
        assert desk.read("en") == [("translated", "How pretty!")]
        assert desk.site.get(desk.path, lang="en").headers["Content-Language"] == "en"

    def test_a_parameter_comes_before_the_header(self, desk: Desk) -> None:
        desk.comment()
        choices: tuple[tuple[dict[str, str], dict[str, Any], str | None], ...] = (
            ({"Accept-Language": "de-AT, en;q=0.5"}, {}, "de"),
            ({"Accept-Language": "de"}, {"lang": "fr"}, "fr"),
            ({"Accept-Language": "de"}, {"lang": "en"}, "en"),
            ({"Accept-Language": "it, *;q=0.1"}, {}, None),
        )
        for headers, params, language in choices:
            answer = desk.site.get(desk.path, headers=headers, **params)
            assert answer.headers.get("Content-Language") == language
            assert answer.headers["Vary"] == "Authorization, Accept-Language"

    @pytest.mark.parametrize(
        ("accepted", "language"),
        [
            ("", None),
            ("de", "de"),
            ("DE-de", "de"),
            ("it", None),
            ("*", None),
            ("en, de", "en"),
            ("en;q=0.5, de", "de"),
            ("en;q=0.5, de;q=0.50", "en"),
            ("fr;q=0, de;q=0.001", "de"),
            ("en-US,en;q=0.9,fr;q=0.8", "en"),
            ("de;q=1.5, fr;q=nan, en;q=0.1", "en"),
            ("de;q=, fr;level=1, en ; q=0.2", "en"),
            (",;,=,;q=1,de", "de"),
            ("it," * 60 + "de", None),
        ],
    )
    def test_what_a_browser_accepts(self, accepted: str, language: str | None) -> None:
        assert preferred(accepted, ("en", "de", "fr")) == language


class TestStates:
    def test_pending_until_it_is_translated(self, desk: Desk) -> None:
        comment = desk.comment()
        assert desk.read("de") == [("pending", None)]
        desk.tell(
            comment,
            lambda one: one.translate_target(1, "es", "de", "Wie schön!", "model", "v1", ROBOT),
        )
        assert desk.read("de") == [("translated", "Wie schön!")]
        assert desk.read("fr") == [("pending", None)]
        assert desk.read() == [("translated", "How pretty!")]
        desk.tell(comment, lambda one: one.edit("¡Precioso!", origin("bob")))
        assert desk.read("de") == [("pending", None)]

    def test_what_is_written_in_it_needs_none(self, desk: Desk) -> None:
        desk.comment("Wie schön!", "de")
        assert desk.read("de") == [("not_needed", None)]
        assert desk.read("fr") == [("pending", None)]

    def test_english_is_foreign_to_whoever_reads_german(self, desk: Desk) -> None:
        desk.comment("How pretty!", "en")
        assert desk.read() == [("not_needed", None)]
        assert desk.read("de") == [("pending", None)]

    @pytest.mark.parametrize("reason", ["no_words", "no_language"])
    def test_what_is_in_no_language_needs_none_in_any(self, desk: Desk, reason: str) -> None:
        comment = desk.comment("🎬", None)
        desk.tell(comment, lambda one: one.skip_translation(1, False, reason, ROBOT))
        assert desk.read("de") == [("not_needed", None)]

    def test_whatever_came_of_it_is_told(self, desk: Desk) -> None:
        comment = desk.comment()
        for status in ("skipped", "failed", "not_needed"):
            comment.leave_target(1, "de", status, "why", ROBOT)
            desk.site.writer.save(comment)
            assert desk.read("de") == [(status, None)]


class TestRequests:
    def test_a_task_for_each_comment_and_language_once(self, desk: Desk) -> None:
        one, two = desk.comment(), desk.comment("Otra cosa")
        desk.comment("Wie schön!", "de")
        sent, before = desk.serve(Sent()), requests("sent")
        for _ in range(3):
            desk.read("de", headers={"X-Request-Id": "conversation"})
            desk.settle()
        assert sorted(sent.messages) == sorted([(one.id, "de"), (two.id, "de")])
        assert sent.origins == {"conversation"}
        desk.read(headers={"Accept-Language": "fr"})
        desk.settle()
        assert [language for _, language in sent.messages[2:]] == ["fr"] * 3
        assert requests("sent") - before == 5

    def test_nothing_for_those_who_read_as_ever(self, desk: Desk) -> None:
        desk.comment()
        sent = desk.serve(Sent())
        for language in (None, "en"):
            desk.read(language)
        desk.settle()
        assert sent.messages == []

    def test_not_before_its_own_task_is_done(self, desk: Desk) -> None:
        desk.comment(language=None)
        sent = desk.serve(Sent())
        assert desk.read("de") == [("pending", None)]
        desk.settle()
        assert sent.messages == []

    def test_an_edited_text_is_asked_for_again(self, desk: Desk) -> None:
        comment = desk.comment()
        sent = desk.serve(Sent())
        desk.read("de")
        desk.settle()
        desk.tell(comment, lambda one: one.edit("¡Precioso!", origin("bob")))
        desk.tell(comment, lambda one: one.detect_language(2, "es", 0.99, "lite", "en", ROBOT))
        desk.tell(comment, lambda one: one.fail_translation(2, "refused", ROBOT))
        desk.read("de")
        desk.settle()
        assert sent.messages == [(comment.id, "de")] * 2

    @pytest.mark.parametrize(
        ("reason", "times"),
        [("throttled", 1), ("no_language_model", 1), ("refused", 0), ("not_kept", 0)],
    )
    def test_what_failed_for_a_reason_that_passes_is_asked_for_again(
        self, desk: Desk, reason: str, times: int
    ) -> None:
        comment = desk.comment()
        desk.tell(comment, lambda one: one.leave_target(1, "de", "failed", reason, ROBOT))
        sent = desk.serve(Sent())
        desk.read("de")
        desk.settle()
        assert len(sent.messages) == times

    def test_a_broker_that_is_away_is_asked_again_by_the_next_reader(self, desk: Desk) -> None:
        comment = desk.comment()
        sent, before = desk.serve(Sent(away=1)), requests("broker_away")
        for _ in range(2):
            assert desk.read("de") == [("pending", None)]
            desk.settle()
        assert sent.messages == [(comment.id, "de")]
        assert requests("broker_away") - before == 1

    def test_redis_may_be_away(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        desk.comment()
        sent = desk.serve(Sent())

        async def away(**_: object) -> None:
            raise RedisError("away")

        monkeypatch.setattr(desk.site.queries.requests, "_grant", away)
        assert desk.read("de") == [("pending", None)]
        desk.settle()
        assert sent.messages == []

    def test_readers_wait_for_nobody_and_fill_nothing(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk.comment()
        read = desk.site.queries.requests
        assert desk.read("de") == [("pending", None)]
        assert read._waiting.empty(), "nobody sends tasks here"
        monkeypatch.setattr(read, "_served", True)
        monkeypatch.setattr(read, "_waiting", asyncio.Queue(2))
        before = requests("too_many")
        for _ in range(3):
            assert desk.read("de") == [("pending", None)]
        assert read._waiting.qsize() == 2
        assert requests("too_many") - before == 1


BUDGETS = {
    "TRANSLATION_REQUESTS_PER_DAY": "5",
    "TRANSLATION_USER_REQUESTS_PER_DAY": "2",
    "TRANSLATION_ANONYMOUS_REQUESTS_PER_DAY": "1",
}


@pytest.mark.parametrize("desk", [BUDGETS], indirect=True)
def test_budgets_of_a_day(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(6):
        desk.comment(f"Qué bonito {n}")
    sent, before = desk.serve(Sent()), requests("over_budget")

    def spent(user: str | None) -> int:
        count = len(sent.messages)
        desk.read("de", user=user)
        desk.settle()
        return len(sent.messages) - count

    assert spent(None) == 1, "those without a token share one"
    assert requests("over_budget") - before == 5
    assert spent(None) == 0
    assert spent("ann") == 2, "whoever has spent theirs keeps nothing from others"
    assert spent("ann") == 0
    assert spent("bob") == 2
    assert spent("eve") == 0, "all of them have one, too"
    assert len(set(sent.messages)) == 5
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    monkeypatch.setattr(desk.site.queries.requests, "_clock", lambda: tomorrow)
    assert spent("eve") == 1
    assert len(set(sent.messages)) == 6

"""Recommendations over HTTP: whose they are, what makes them, how long they hold."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from domain.upload import Upload
from infra.settings import Settings
from projections.catalog import Catalog
from projections.comments import Comments
from projections.likes import Likes
from projections.recommendations.cache import ENGAGED_PREFIX, PREFIX, Invalidation
from projections.recommendations.keeping import keep
from projections.recommendations.pairing import Engagement
from projections.recommendations.weighing import Kind, Weighing
from tests import openai_server
from tests.integration.projection_support import hosting, origin
from tests.integration.readapi_support import Site
from tests.openai_server import Answer, Call, OpenAIServer

ALL = "/recommendations"
SECONDS = 4.0
UNSETTLED = 1.5
VIDEO = """
INSERT INTO analytics.videos (video_id, owner, category, completed_at) VALUES (%s, %s, %s, %s)
"""


@dataclass
class Place:
    """A site, and who has done what there."""

    site: Site
    settings: Settings

    def video(self, title: str = "Tides", owner: str = "owner", category: str = "art") -> Upload:
        video = self.site.writer.video(owner, title=title, category=category)
        with self.connected() as conn:
            at = datetime.now(UTC) - timedelta(days=1)
            conn.execute(VIDEO, (video.id, owner, category, at))
        return video

    def watch(self, viewer: str, *videos: Upload) -> None:
        now = datetime.now(UTC) - timedelta(minutes=len(videos))
        told = [
            Engagement(viewer, str(each.id), Kind.WATCHED, now + timedelta(minutes=number))
            for number, each in enumerate(videos)
        ]
        with self.connected() as conn, conn.transaction():
            changed = keep(conn, told, Weighing.from_settings(self.settings))
        self.site.run(Invalidation(self.site.rankings, self.settings).touch(changed))

    def ask(self, user: str = "ann", path: str = ALL, **params: Any) -> dict[str, Any]:
        answer = self.site.get(path, user, **params)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def connected(self) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self.site.database_url, autocommit=True)


def titles(body: dict[str, Any]) -> list[str]:
    return [each["video"]["title"] for each in body["items"]]


def settings_of(**more: str) -> Settings:
    given = {
        "RECOMMENDATIONS_INVALIDATE_SECONDS": str(UNSETTLED),
        "RECOMMENDATIONS_TIMEOUT_SECONDS": str(SECONDS),
        **more,
    }
    return Settings.model_validate(given)


def serving(database_url: str, folder: Path, settings: Settings) -> Iterator[Place]:
    site = Site(database_url, folder, settings=settings)
    try:
        with hosting(database_url, Catalog(), Likes(), Comments()):
            yield Place(site, settings)
    finally:
        site.close()


@pytest.fixture
def place(database_url: str, tmp_path: Path) -> Iterator[Place]:
    """Without a language model."""
    yield from serving(database_url, tmp_path, settings_of())


@pytest.fixture(scope="module")
def provider() -> Iterator[OpenAIServer]:
    with openai_server.openai_server() as server:
        yield server


@pytest.fixture
def asking(database_url: str, tmp_path: Path, provider: OpenAIServer) -> Iterator[Place]:
    """With a language model, which is asked once per minute at most by each test."""
    provider.forget()
    settings = settings_of(OPENAI_BASE_URL=provider.url, OPENAI_API_KEY="key")
    yield from serving(database_url, tmp_path, settings)


@pytest.mark.parametrize("path", [ALL, "/videos/recommendations"])
def test_they_are_the_callers_own(place: Place, path: str) -> None:
    get = place.site.get
    assert get(path).status_code == 401
    refused = get(path, "ann", userId="bob")
    assert (refused.status_code, refused.json()["type"]) == (403, "forbidden")
    assert get(path, "ann", userId="ann").status_code == 200
    assert get(path, "root", admin=True, userId="bob").status_code == 200


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": 51}, {"userId": ""}, {"userId": "\0"}])
def test_what_can_not_be_asked_is_refused(place: Place, params: dict[str, Any]) -> None:
    answer = place.site.get(ALL, "ann", **params)
    assert (answer.status_code, answer.json()["type"]) == (422, "invalid")


def test_neighbours_of_what_was_watched(place: Place) -> None:
    seen, near, own = place.video("Seen"), place.video("Near"), place.video("Own", owner="ann")
    for viewer in ("bob", "cat", "dan"):
        place.watch(viewer, seen, near, own)
    place.watch("ann", seen)
    body = place.ask()
    assert (body["source"], body["cached"]) == ("blend", False)
    assert titles(body) == ["Near"]
    assert body["items"][0]["reason"] == "Because you watched “Seen”"
    assert body["items"][0]["video"] == {"videoId": str(near.id), "title": "Near"}


def test_the_same_with_all_that_is_known_of_the_videos(place: Place) -> None:
    seen, near = place.video("Seen"), place.video("Near")
    place.watch("bob", seen, near)
    place.watch("ann", seen)
    body = place.ask(path="/videos/recommendations")
    assert body["items"][0]["video"] == place.site.get(f"/videos/{near.id}", "ann").json()
    assert place.ask()["items"][0]["score"] == body["items"][0]["score"]


def test_they_are_kept_until_the_user_does_something(place: Place) -> None:
    seen, near, third = (place.video(each) for each in ("Seen", "Near", "Third"))
    place.watch("bob", seen, near, third)
    place.watch("ann", seen)
    made = place.ask()
    assert sorted(titles(made)) == ["Near", "Third"]
    time.sleep(UNSETTLED)
    assert place.ask() == made | {"cached": True}
    place.watch("ann", near)
    again = place.ask()
    assert (again["cached"], titles(again)) == (False, ["Third"])


def test_who_does_much_has_them_made_now_and_then(place: Place) -> None:
    seen, near, third = (place.video(each) for each in ("Seen", "Near", "Third"))
    place.watch("bob", seen, near, third)
    place.watch("ann", seen)
    place.ask()
    place.watch("ann", near)
    # Made a moment ago: kept, though something new has happened.
    assert place.ask()["cached"] is True
    time.sleep(UNSETTLED)
    assert place.ask()["cached"] is False


def test_the_keys_are_those_of_the_contract(place: Place) -> None:
    place.video()
    place.ask()

    async def look() -> tuple[list[str | bytes], int]:
        redis = place.site.rankings
        return await redis.keys(f"{PREFIX}*"), await redis.ttl("user:recommendations:ann")

    keys, ttl = place.site.run(look())
    assert keys == [b"user:recommendations:ann"]
    assert 3590 < ttl <= 3600
    # Whatever users are called, one's recommendations never lie where another's are told of.
    assert not ENGAGED_PREFIX.startswith(PREFIX)


def test_what_was_removed_leaves_no_gap(place: Place) -> None:
    seen, near, third = (place.video(each) for each in ("Seen", "Near", "Third"))
    place.watch("bob", seen, near, third)
    place.watch("ann", seen)
    first, second = titles(place.ask())
    gone = {"Near": near, "Third": third}[first]
    gone.remove(origin("owner"))
    place.site.writer.save(gone)
    body = place.ask(limit=1, fresh=False)
    assert (body["cached"], titles(body)) == (True, [second])


def test_a_new_site_recommends_what_is_new(place: Place) -> None:
    for title in ("Old", "New"):
        place.video(title)
    body = place.ask()
    assert (body["source"], titles(body)) == ("trending", ["New", "Old"])
    assert {each["reason"] for each in body["items"]} == {"New"}


def test_without_the_analytics_there_is_what_is_new(place: Place) -> None:
    place.video("New")
    place.video("Own", owner="ann")
    place.site.run(place.site.queries.analytics.pool.close())
    body = place.ask()
    assert (body["source"], titles(body)) == ("trending", ["New"])


def test_the_model_orders_and_says_why(asking: Place, provider: OpenAIServer) -> None:
    asked = watched(asking)
    provider.otherwise = backwards
    body = asking.ask()
    assert (body["source"], body["cached"]) == ("llm", False)
    assert "The model's." in {each["reason"] for each in body["items"]}
    assert asking.ask() == body | {"cached": True}
    assert len(provider.calls) == 1
    # The whole blend is still there.
    assert sorted(titles(body)) == sorted(asked)


def test_nobody_else_is_in_the_prompt(asking: Place, provider: OpenAIServer) -> None:
    watched(asking)
    asking.watch("bob", asking.video("Bob's secret taste", category="other"))
    provider.otherwise = backwards
    asking.ask()
    whole = json.dumps(provider.calls[0].body)
    with asking.connected() as conn:
        ids = {str(row[0]) for row in conn.execute("SELECT video_id FROM analytics.videos")}
    for private in ("ann", "bob", "owner", *ids):
        assert f'"{private}' not in whole
        assert f'{private}"' not in whole
    assert not any(each in whole for each in ids)


@pytest.mark.parametrize(
    "answer",
    [
        openai_server.status(500),
        openai_server.status(429),
        openai_server.hang(),
        openai_server.hang_up(),
        openai_server.refusal(),
        openai_server.malformed(),
        openai_server.truncated(),
        openai_server.answered(picks=[]),
    ],
    ids=["500", "429", "hangs", "hangs-up", "refusal", "malformed", "truncated", "nothing"],
)
def test_whatever_the_provider_does_there_is_an_answer(
    asking: Place, provider: OpenAIServer, answer: Answer
) -> None:
    expected = watched(asking)
    provider.otherwise = lambda call: answer
    started = time.monotonic()
    body = asking.ask()
    assert time.monotonic() - started < SECONDS + 3
    assert (body["source"], sorted(titles(body))) == ("blend", sorted(expected))


def watched(place: Place) -> list[str]:
    """What is recommended to ann now."""
    seen = place.video("Seen")
    others = [place.video(f"Number {number}") for number in range(5)]
    for viewer in ("bob", "cat"):
        place.watch(viewer, seen, *others)
    place.watch("ann", seen)
    return [each.title for each in others]


def backwards(call: Call) -> Answer:
    """The candidates in reverse, with a reason."""
    ids = [each["id"] for each in call.data["candidates"]]
    picks = [{"id": each, "reason": "The model's."} for each in reversed(ids)]
    return openai_server.answered(picks=picks)

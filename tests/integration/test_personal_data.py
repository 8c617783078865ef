"""What is found of one person in a database, by the audit's index and before it is there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fakeredis import FakeServer
from redis.exceptions import ConnectionError as RedisAway

from backlot.features import read_models
from backlot.privacy import personal_data
from domain.comment import Comment
from domain.moderation import ActingAs, UserBlock, block_id
from engine.inspection.index import Audit
from engine.installation import install
from infra.objects.folder import FolderStore
from infra.pseudonyms import OwnNames
from infra.redis import embedded_redis
from infra.settings import load_settings
from projections.comments import Comments
from projections.likes import Likes
from projections.recommendations.recommender import PREFIX
from readapi.privacy import Holding, PersonalData, document
from tests.integration.projection_support import Writer, caught_up, hosting, origin

Run = Callable[[Coroutine[Any, Any, Any]], Any]
HOUR = timedelta(hours=1)


@pytest.fixture
def site(database_url: str, writer: Writer) -> str:
    """Ann likes and comments, a moderator removes that; Bob blocks her; each has a video."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        install(conn, read_models().all())
    film, _ = writer.video("bob", title="Bob's film"), writer.video("ann", title="Ann's film")
    writer.like(film.id, "ann", "bob")
    comment = Comment.blank(block_id("any", "stream"))
    comment.post(film.id, "Ann's words", origin("ann"))
    comment.remove(ActingAs.MODERATOR, "the moderator's words", origin("mod"))
    block = UserBlock.blank(block_id("bob", "ann"))
    block.block("ann", origin("bob"))
    writer.save(comment, block)
    return database_url


@pytest.fixture
def run() -> Iterator[Run]:
    """Runs work on one event loop, which is that of the client of Redis."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture
def data(site: str, tmp_path: Path) -> PersonalData:
    objects = FolderStore(tmp_path, b"s" * 32, HOUR, lambda: datetime.now(UTC))
    redis = embedded_redis(FakeServer(version=(7, 4)))
    return personal_data(load_settings({}), site, redis, objects, OwnNames())


async def found(data: PersonalData, subject: str) -> dict[str, int]:
    """How much is found where there is anything."""
    async with data.look(subject) as search:
        holdings = [await search.count(place) for place in data.distinct()]
    return {each.place.name: each.count for each in holdings if each.count}


async def exported(data: PersonalData, subject: str) -> dict[str, Any]:
    return dict(json.loads(b"".join([piece async for piece in document(data, subject, subject)])))


EVENTS_OF_ANN = {"events": 5, "events.blocked": 1}


def test_events_are_found_before_they_are_indexed(run: Run, data: PersonalData) -> None:
    assert run(found(data, "ann")) == EVENTS_OF_ANN
    # As a moderator; and of the owner of nothing but a video and a like.
    assert run(found(data, "mod")) == {"events": 1}
    assert run(found(data, "bob")) == {"events": 4}
    assert run(found(data, "an")) == {}


def test_events_are_found_by_the_index(
    run: Run, data: PersonalData, site: str, writer: Writer
) -> None:
    with hosting(site, Audit(), Likes(), Comments()):
        caught_up(site, ["audit", "likes", "comments"], writer.head)
    assert run(found(data, "ann")) == {
        **EVENTS_OF_ANN,
        "audit.events": 4,
        "likes.likes": 1,
        "comments.hidden": 1,
    }


def test_an_export_has_what_is_the_person_s_own(
    run: Run, data: PersonalData, site: str, writer: Writer
) -> None:
    with hosting(site, Audit(), Likes(), Comments()):
        caught_up(site, ["audit", "likes", "comments"], writer.head)
    told = run(exported(data, "ann"))
    assert [each["topic"] for each in told["parts"]["events"]] == [
        "upload.started.v2",
        "upload.completed.v1",
        "video_likes.liked.v1",
        "comment.posted.v1",
        "comment.removed.v1",
    ]
    removed = told["parts"]["events"][-1]["payload"]
    assert removed["author"] == "ann"
    assert {"actor", "stated_reason"}.isdisjoint(removed)
    (hidden,) = told["parts"]["comments.hidden"]
    assert (hidden["content"], hidden["statedReason"]) == ("Ann's words", "the moderator's words")
    assert told["parts"]["events.blocked"] == []
    index = {each["part"]: each for each in told["index"]}
    assert index["events.blocked"]["count"] == 1
    assert index["telemetry"]["setting"] == "TELEMETRY_RETENTION_DAYS"
    assert index["topics"]["note"] == "it can't be searched by person"
    assert "bob" not in json.dumps(told["parts"])


def test_keys_of_redis_are_found_by_their_names(run: Run, data: PersonalData) -> None:
    async def scenario() -> dict[str, int]:
        assert data.redis is not None
        for user in ("ann", "anna", "a*"):
            await data.redis.set(f"{PREFIX}{user}", "recommended")
        return await found(data, "a*")

    assert run(scenario())["redis.recommendations"] == 1


def test_what_does_not_answer_is_told_and_not_taken_for_nothing(
    run: Run, data: PersonalData
) -> None:
    async def scenario() -> dict[str, Holding]:
        class Away:
            def scan_iter(self, **_: object) -> Any:
                raise RedisAway("refused")

        away: Any = Away()
        without = PersonalData(
            data.places, data.database_url, data.analytics_url, away, None, data.terms
        )
        async with without.look("ann") as search:
            return {
                place.name: await search.count(place)
                for place in without.distinct()
                if place.name.startswith(("redis.", "objects"))
            }

    told = run(scenario())
    assert told["redis.recommendations"].is_away
    assert told["redis.recommendations"].note == "it does not answer: refused"
    assert (told["objects"].count, told["objects"].is_away) == (None, False)

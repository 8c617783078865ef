"""What is told from memory is what a process tells that has just begun, whatever happens."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from domain.model import FORGOTTEN
from domain.operation import Operation, OperationOutcome
from domain.person import Person, VideosFate
from domain.person import stream_id as person_of
from domain.upload import Upload, Visibility
from infra import metrics
from infra.pseudonyms import OwnNames
from readapi import viewer_cache
from tests.integration.event_log import rows
from tests.integration.projection_support import origin
from tests.integration.read_community import (
    CHANGES,
    KINDS,
    OWNER,
    Community,
    Held,
    Models,
    asked,
    change,
    comment_paths,
    look_around,
    paths,
    shown,
    view,
)
from tests.integration.readapi_support import Site
from tests.support import seeds


@pytest.fixture
def models(database_url: str) -> Iterator[Models]:
    opened = Models(database_url)
    yield opened
    opened.close()


@pytest.fixture
def site(database_url: str, tmp_path: Path) -> Iterator[Site]:
    opened = Site(database_url, tmp_path / "one")
    yield opened
    opened.close()


@pytest.fixture
def other(database_url: str, tmp_path: Path) -> Iterator[Site]:
    opened = Site(database_url, tmp_path / "other")
    yield opened
    opened.close()


@seeds((1, 2), always=1)
def test_whatever_happens_the_answers_are_those_of_a_new_process(
    site: Site, other: Site, models: Models, seed: int
) -> None:
    """Each kind of event of all that is shown, in any order, before and behind the read models."""
    dice = random.Random(seed)
    community = Community(site, models, dice)
    for _ in range(3):
        community.happen(Upload.Completed)
    compare(site, other, models, list(paths({each.id for each in community.uploads})))
    for kind in dice.sample(KINDS, len(KINDS)):
        video = community.happen(kind)
        if dice.random() < 0.3:
            view(site, video)
        disturb(site, models, dice, video)
        about = [*paths({video})]
        others = [*paths(each.id for each in community.uploads[-6:])]
        chosen = [*dice.sample(about, 10), *dice.sample(others, 4)]
        if community.comments:
            chosen += dice.sample([*comment_paths(community.comments[-3:])], 4)
        compare(site, other, models, chosen, f"seed {seed}, {kind.TOPIC}")


def disturb(site: Site, models: Models, dice: random.Random, video: UUID) -> None:
    """Have memory hear of it before the read models, or behind them, or both half."""
    match dice.randrange(4):
        case 0:
            site.run(site.queries.tail.confirm())
        case 1:
            # What is read knows more than memory has heard of.
            models.advance()
            site.run(look_around(site, video))
        case 2:
            models.advance(dice.choice(["catalog", "likes", "comments"]))
            site.run(look_around(site, video))
            site.run(site.queries.tail.confirm())
            site.run(look_around(site, video))


def compare(
    site: Site, other: Site, models: Models, wanted: list[tuple[str, str | None]], why: str = ""
) -> None:
    models.advance()
    for path, user in wanted:
        other.forget()
        assert asked(site, path, user) == asked(other, path, user), f"{why}: {path} for {user}"


@pytest.mark.parametrize("what", CHANGES)
def test_a_load_that_misses_an_event_says_so_and_is_not_kept(
    site: Site, models: Models, what: str
) -> None:
    kind, schema = CHANGES[what]
    video = site.writer.video(OWNER)
    models.advance()
    site.run(site.queries.tail.confirm())
    held = Held(site)
    found = held.load(kind, video.id, lambda: change(site, video, what))
    behind = found.is_behind if kind == "comments" else None
    if kind == "video":
        behind = found[0].behind.get(schema)
    elif kind == "likes":
        behind = found.behind.get(schema)
    assert behind
    assert not held.is_kept(kind, video.id)
    models.advance()
    held.load(kind, video.id, lambda: None)
    # What is not there is asked for each time.
    assert held.is_kept(kind, video.id) is (what != "remove")


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_load_has_is_not_counted_twice(
    site: Site, other: Site, models: Models, what: str
) -> None:
    """Where the read models were ahead of what memory had heard of."""
    video = site.writer.video(OWNER)
    site.writer.like(video.id, "cat")
    models.advance()
    site.run(site.queries.tail.confirm())
    change(site, video, what)
    models.advance()
    site.run(look_around(site, video.id))
    compare(site, other, models, list(paths({video.id})), what)


@pytest.mark.parametrize("kind", ["video", "likes", "comments"])
def test_a_load_that_began_before_a_cutover_is_not_kept(
    site: Site, models: Models, kind: str
) -> None:
    video = site.writer.video(OWNER)
    models.advance()
    site.run(site.queries.tail.confirm())
    held = Held(site)
    held.load(kind, video.id, lambda: held.tail.begin(held.tail.position))
    assert not held.is_kept(kind, video.id)
    held.load(kind, video.id, lambda: None)
    assert held.is_kept(kind, video.id)


def test_likes_and_views_are_added_in_memory(site: Site, models: Models) -> None:
    """The read models stand still meanwhile, so nothing else can tell."""
    video = site.writer.video(OWNER).id
    site.writer.like(video, "ann")
    models.advance()
    assert (shown(site, video, "ann")["likes"], shown(site, video, "ann")["hasLiked"]) == (1, True)
    loaded = loads("video")
    site.writer.like(video, "bob", "cat")
    view(site, video)
    view(site, video)
    told = shown(site, video, "bob")
    assert (told["likes"], told["views"]) == (3, 2)
    site.writer.unlike(video, "ann", "cat")
    told = shown(site, video, "ann")
    assert (told["likes"], told["hasLiked"]) == (1, False)
    assert [item["videoId"] for item in asked(site, "/videos/liked", "ann")[1]["items"]] == []
    assert loads("video") == loaded
    # What the read models take in now is counted already.
    models.advance()
    site.forget()
    assert shown(site, video, "ann")["likes"] == 1


def test_likes_of_comments_are_added_in_memory(site: Site, models: Models) -> None:
    """The same of comments, and of replies that nobody has in memory."""
    video = site.writer.video(OWNER).id
    comment, other = (site.writer.comment(video) for _ in range(2))
    site.writer.like_comment(comment, "ann")
    models.advance()

    def told(user: str | None) -> list[tuple[int, bool | None]]:
        items = asked(site, f"/videos/{video}/comments", user)[1]["items"]
        return [(each["likeCount"], each.get("hasLiked")) for each in items]

    assert told("ann") == [(0, False), (1, True)]
    assert told(None) == [(0, None), (1, None)]
    loaded = loads("comments"), loads("comment likes")
    site.writer.like_comment(comment, "bob", "cat")
    site.writer.like_comment(other, "ann")
    assert told("ann") == [(1, True), (3, True)]
    site.writer.save(site.writer.wish_comment("unlike", comment, "ann"))
    assert told("ann") == [(1, True), (2, False)]
    assert told(None) == [(1, None), (2, None)]
    assert (loads("comments"), loads("comment likes")) == loaded
    models.advance()
    site.forget()
    assert told("ann") == [(1, True), (2, False)]


def loads(kind: str) -> float:
    return metrics.value("backlot_read_cache_reads_total", kind=kind, outcome="miss")


def test_the_newest_like_comes_first_from_memory_too(site: Site, models: Models) -> None:
    videos = [site.writer.video(OWNER).id for _ in range(3)]
    site.writer.like(videos[0], "ann")
    site.writer.like(videos[1], "ann")
    models.advance()
    liked_of(site, "ann")
    site.writer.like(videos[2], "ann")
    site.writer.unlike(videos[0], "ann")
    site.writer.like(videos[0], "ann")
    assert liked_of(site, "ann") == [videos[0], videos[2], videos[1]]
    models.advance()
    site.forget()
    assert liked_of(site, "ann") == [videos[0], videos[2], videos[1]]


def liked_of(site: Site, user: str) -> list[UUID]:
    found: list[UUID] = []
    query = "/videos/liked?limit=2"
    while True:
        page = asked(site, query, user)[1]
        found += (UUID(item["videoId"]) for item in page["items"])
        if "nextCursor" not in page:
            return found
        query = f"/videos/liked?limit=2&cursor={page['nextCursor']}"


def test_what_several_viewers_like_is_read_with_one_statement(
    site: Site, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets their own, newest first: whoever likes nothing, or too much to keep, among them."""
    monkeypatch.setattr(viewer_cache, "MOST_LIKES", 3)
    videos = [site.writer.video(OWNER).id for _ in range(5)]
    likes = {"ann": videos[:3], 'b"o,b}': [videos[2], videos[0]], "eve": [], "zoe": videos}
    for viewer, liked in likes.items():
        for video in liked:
            site.writer.like(video, viewer)
    models.advance()
    pool, lent = site.queries.pool, []

    def counted() -> Any:
        lent.append(1)
        return type(pool).connection(pool)

    async def ask() -> list[Any]:
        await site.queries.tail.confirm()
        monkeypatch.setattr(pool, "connection", counted)
        return await asyncio.gather(*map(site.queries.cache.liked.all, likes))

    found = site.run(ask())
    assert len(lent) == 1
    told = [None if each is None else [*each.things] for each in found]
    assert told == [videos[2::-1], [videos[0], videos[2]], [], None]


def test_who_likes_more_than_is_kept_is_told_the_same(
    site: Site, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer_cache, "MOST_LIKES", 3)
    videos = [site.writer.video(OWNER).id for _ in range(6)]
    for count, video in enumerate(videos[:5], 1):
        site.writer.like(video, "ann")
        models.advance()
        # Once warm, and once from what a like has changed.
        for _ in range(2):
            assert liked_of(site, "ann") == videos[:count][::-1]
            has = [shown(site, each, "ann")["hasLiked"] for each in videos]
            assert has == [place < count for place in range(6)]
    for count, video in zip((4, 3, 2), videos, strict=False):
        site.writer.unlike(video, "ann")
        models.advance()
        assert len(liked_of(site, "ann")) == count
        assert shown(site, video, "ann")["hasLiked"] is False
        assert shown(site, videos[4], "ann")["hasLiked"] is True


@pytest.mark.parametrize("after", [Visibility.PRIVATE, Visibility.UNLISTED, None])
def test_what_is_hidden_or_removed_is_told_to_nobody_else(
    site: Site, models: Models, after: Visibility | None
) -> None:
    """Though it is in memory; the read models know nothing of it when it is asked for first."""
    video = site.writer.video(OWNER)
    site.writer.like(video.id, "ann")
    models.advance()
    seen = list(paths({video.id}))
    for path, user in seen:
        asked(site, path, user)
    if after is None:
        video.remove(origin(OWNER))
    else:
        video.change_visibility(after, origin(OWNER))
    site.writer.save(video)
    models.advance()
    for path, user in seen:
        status, body = asked(site, path, user)
        owns = user == OWNER and after is not None
        if "items" in body and "comments" not in path:
            listed = [item["videoId"] for item in body["items"]]
            mine = owns and path == f"/videos?owner={OWNER}"
            assert listed == ([str(video.id)] if mine else []), path
        else:
            assert status == (200 if owns or after is Visibility.UNLISTED else 404), path


class Names(OwnNames):
    """User ids, which a test may forget."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, str] = {}

    def recall(self, pseudonyms: Iterable[str]) -> dict[str, str]:
        return {each: self.known.get(each, each) for each in pseudonyms}


def test_the_name_of_who_is_forgotten_is_never_told_again(
    site: Site, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names()
    for cache in (site.queries.cache, site.queries.comment_cache):
        monkeypatch.setattr(cache, "_persons", names)
    names.known = {OWNER: "Alice of the tests", "bob": "Bob of the tests"}
    video = site.writer.video(OWNER).id
    site.writer.comment(video, "bob")
    models.advance()
    told = [f"/videos/{video}", f"/videos/{video}/comments", "/videos"]
    assert [str(asked(site, path, None)).count("of the tests") for path in told] == [1, 1, 1]
    names.known = {OWNER: FORGOTTEN, "bob": FORGOTTEN}
    persons = {who: Person.blank(person_of(who)) for who in names.known}
    for who, person in persons.items():
        person.request_forgetting(who, VideosFate.KEEP, origin("system:privacy"))
        site.writer.save(person)
    models.advance()
    assert [str(asked(site, path, None)).count(FORGOTTEN) for path in told] == [1, 1, 1]
    for who, person in persons.items():
        person.finish_forgetting(who, {}, origin("system:privacy"))
        site.writer.save(person)
    models.advance()
    assert [str(asked(site, path, None)).count("of the tests") for path in told] == [0, 0, 0]


def test_what_an_operator_did_is_told(site: Site, models: Models) -> None:
    """A parked event that is applied after all changes a read model, and nothing in the log."""
    video = site.writer.video(OWNER).id
    site.writer.comment(video, "bob")
    models.advance()
    told = [f"/videos/{video}", f"/videos/{video}/comments"]
    assert ["Rain" in str(asked(site, path, None)) for path in told] == [True, False]
    rows(site.database_url, "UPDATE catalog.uploads SET title = 'Snow' RETURNING 1")
    rows(site.database_url, "UPDATE comments.comments SET content = 'Snow' RETURNING 1")
    operation = Operation.blank(uuid4())
    operation.request("retry", "catalog", {}, origin("root"))
    site.writer.save(operation)
    assert ["Snow" in str(asked(site, path, None)) for path in told] == [False, False]
    operation.finish(OperationOutcome.DONE, {}, origin("root"))
    site.writer.save(operation)
    models.advance()
    assert ["Snow" in str(asked(site, path, None)) for path in told] == [True, True]


def test_a_page_that_may_lack_something_is_not_kept(
    site: Site, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The catalog comes to the end of the log while an older page of it is on its way."""
    site.writer.video(OWNER)
    models.advance()
    rows(site.database_url, PAUSE)
    site.writer.video(OWNER)
    places, queries = site.queries.catalog.places, site.queries

    async def late(*given: Any) -> Any:
        found = await places(*given)
        rows(site.database_url, RESUME)
        models.advance()
        await queries.waiting._look()
        return found

    monkeypatch.setattr(queries.catalog, "places", late)
    assert len(asked(site, "/videos", None)[1]["items"]) == 1
    monkeypatch.setattr(queries.catalog, "places", places)
    assert len(asked(site, "/videos", None)[1]["items"]) == 2


PAUSE = """
UPDATE backlot_checkpoints SET status = 'paused' WHERE subscription = 'catalog' RETURNING 1
"""
RESUME = PAUSE.replace("paused", "running")


def test_few_are_kept(site: Site, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are; what was asked for last is among them."""
    videos = [site.writer.video(OWNER).id for _ in range(4)]
    models.advance()
    cache = site.queries.cache
    monkeypatch.setattr(cache._videos, "_most", 2)
    for video in videos:
        assert shown(site, video)["videoId"] == str(video)
    assert [video in cache for video in videos] == [False, False, True, True]

"""Stats and trending over HTTP: shapes, refusals, what is kept, and what a removal does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from domain.upload import Upload, Visibility
from infra.http.shapes import encode_position
from projections.trending import GENERATION, Trending, TrendingInvalidation
from tests.integration.event_log import rows
from tests.integration.projection_support import caught_up, origin
from tests.integration.readapi_support import UNSETTLED, Site, serving
from tests.integration.trending_support import Deed, Film, write
from tests.support import eventually

TRENDING = "/analytics/trending"


@pytest.fixture
def site(database_url: str, tmp_path: Path) -> Iterator[Site]:
    with serving(database_url, tmp_path) as site:
        yield site


def made_at(body: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(body["generatedAt"])


def happened(site: Site, *views: tuple[Upload, int], removed: bool = False) -> None:
    """Have the analytics hold so many views of each of these videos, an hour old."""
    now = datetime.now(UTC)
    films = {v.id: Film(v.id, now - timedelta(hours=2), "art", removed) for v, _ in views}
    at = now - timedelta(hours=1)
    deeds = [Deed(films[video.id], "view", at) for video, times in views for _ in range(times)]
    with psycopg.connect(site.database_url, autocommit=True) as conn:
        write(conn, list(films.values()), deeds)


def removed(site: Site, video: Upload) -> None:
    video.remove(origin("alice"))
    site.writer.save(video)


def ranked(site: Site, user: str | None = None, **params: Any) -> list[str]:
    items = site.get(TRENDING, user, **params).json()["items"]
    assert [item["rank"] for item in items] == list(range(1, len(items) + 1))
    return [item["video"]["videoId"] for item in items]


def test_trending_tells_why(site: Site) -> None:
    first, second = site.writer.video(), site.writer.video()
    site.writer.like(second.id, "bob")
    happened(site, (first, 3), (second, 5))
    answer = site.get(TRENDING, "bob")
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"items", "generatedAt", "cached"}
    assert body["cached"] is False
    top = body["items"][0]
    assert top["video"] == site.get(f"/videos/{second.id}", "bob").json()
    assert top["video"]["hasLiked"] is True
    parts = dict(top["components"])
    penalty = parts.pop("agePenalty")
    assert (parts["views"], parts["recencyBoost"]) == (5, 5)
    assert set(parts) == {"views", "likes", "comments", "watchMinutes", "recencyBoost"}
    assert sum(parts.values()) - penalty == pytest.approx(top["score"])
    assert 0 < penalty < 0.1 * sum(parts.values())
    assert ranked(site) == [str(second.id), str(first.id)]


def test_parameters_choose(site: Site) -> None:
    first, second = site.writer.video(category="art"), site.writer.video(category="art")
    happened(site, (first, 3), (second, 5))
    assert ranked(site, limit=1) == [str(second.id)]
    assert len(ranked(site, category="art", timeRange="30d")) == 2
    assert ranked(site, category="nature", timeRange="all") == []


@pytest.mark.parametrize(
    "params",
    [
        {"timeRange": "24h"},
        {"timeRange": ""},
        {"limit": 0},
        {"limit": 101},
        {"limit": "many"},
        {"category": ""},
        {"category": "x" * 51},
        {"category": "\x00"},
    ],
)
def test_trending_refuses_what_it_does_not_know(site: Site, params: dict[str, Any]) -> None:
    answer = site.get(TRENDING, **params)
    assert (answer.status_code, answer.json()["type"]) == (422, "invalid")


def test_a_ranking_is_kept_until_something_new_is_counted(site: Site) -> None:
    first, second = site.writer.video(), site.writer.video()
    happened(site, (first, 3), (second, 5))
    made = site.get(TRENDING).json()
    happened(site, (first, 9), (second, 5))
    time.sleep(UNSETTLED.total_seconds())
    kept = site.get(TRENDING).json()
    assert kept == made | {"cached": True}
    site.run(TrendingInvalidation(site.rankings).touch())
    again = site.get(TRENDING).json()
    assert again["cached"] is False
    assert again["generatedAt"] > made["generatedAt"]
    assert ranked(site) == [str(first.id), str(second.id)]


def test_new_events_have_it_made_again_at_most_every_few_seconds(site: Site) -> None:
    video = site.writer.video()
    happened(site, (video, 3))
    invalidation = TrendingInvalidation(site.rankings)
    site.run(invalidation.touch())
    made = site.get(TRENDING).json()
    assert made["cached"] is False

    def kept() -> bool:
        """Whether something new was counted, and the ranking before it is told once more."""
        before = site.get(TRENDING).json()
        site.run(invalidation.touch())
        after = site.get(TRENDING).json()
        if after == before | {"cached": True}:
            return True
        # So much time has passed meanwhile on a busy machine.
        assert made_at(after) - made_at(before) >= UNSETTLED
        return False

    eventually(kept)
    time.sleep(UNSETTLED.total_seconds())
    # What came last is not forgotten, although nothing came after it.
    assert site.get(TRENDING).json()["cached"] is False


def test_rankings_have_keys_of_their_own_and_expire(site: Site) -> None:
    site.writer.video(category="art")
    site.get(TRENDING)
    site.get(TRENDING, timeRange="all", limit=7, category="art")
    site.run(TrendingInvalidation(site.rankings).touch())

    async def kept() -> tuple[set[Any], int]:
        redis = site.rankings
        return set(await redis.keys("trending:*")), await redis.pttl("trending:7d:20")

    keys, left = site.run(kept())
    assert keys == {b"trending:7d:20", b"trending:all:7:art", GENERATION.encode()}
    assert 290_000 < left <= 300_000


def test_made_up_categories_have_nothing_ranked_and_fill_no_cache(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = site.writer.video(category="art")
    happened(site, (video, 3))
    assert ranked(site, category="art") == [str(video.id)]

    async def kept() -> set[Any]:
        return set(await site.rankings.keys("trending:*"))

    keys = site.run(kept())

    async def rank(*_: Any, **__: Any) -> None:
        raise AssertionError("something was ranked")

    monkeypatch.setattr(Trending, "rank", rank)
    for number in range(50):
        body = site.get(TRENDING, category=f"made up {number}").json()
        assert (body["items"], body["cached"]) == ([], False)
    assert site.run(kept()) == keys
    assert site.get(TRENDING, category="art").json()["cached"]


def test_a_removed_video_is_gone_at_once_and_leaves_no_gap(site: Site) -> None:
    first, second = site.writer.video(), site.writer.video()
    happened(site, (first, 3), (second, 5))
    assert ranked(site) == [str(second.id), str(first.id)]
    removed(site, second)
    # The one that was kept is not of that position any more.
    assert site.get(TRENDING).json()["cached"] is False
    assert ranked(site) == [str(first.id)]


def test_another_edition_is_never_shown_from_what_was_kept(site: Site) -> None:
    """Whoever writes that a video is listed otherwise; ranks stay where only a title changes."""
    first, second = (site.writer.video(category="art") for _ in range(2))
    happened(site, (first, 3), (second, 5))
    # A category that the catalog does not know yet has nothing ranked.
    caught_up(site.database_url, ["catalog"], site.writer.head)
    ask: dict[str, Any] = {"category": "art", "fresh": False}
    made = site.get(TRENDING, **ask).json()
    for change, cached in (
        (b"UPDATE analytics.videos SET duration_seconds = 9", True),
        (b"UPDATE analytics.videos SET category = category, removed = false", True),
        (b"UPDATE analytics.videos SET category = 'nature' WHERE video_id = %s", False),
        (b"UPDATE analytics.videos SET removed = true WHERE video_id = %s", False),
        (b"UPDATE analytics.videos SET completed_at = now() WHERE video_id = %s", False),
    ):
        with psycopg.connect(site.database_url, autocommit=True) as conn:
            conn.execute(change, (second.id,) if b"%s" in change else ())
        again = site.get(TRENDING, **ask).json()
        assert again["cached"] is cached, change
    assert [item["video"]["videoId"] for item in made["items"]] == [str(second.id), str(first.id)]
    assert ranked(site, category="art") == [str(first.id)]


@pytest.mark.parametrize("visibility", ["private", "unlisted"])
def test_a_kept_ranking_shows_no_video_that_is_not_public_any_more(
    site: Site, visibility: str
) -> None:
    first, second, third = (site.writer.video() for _ in range(3))
    happened(site, (first, 3), (second, 5), (third, 1))
    three = [str(second.id), str(first.id), str(third.id)]
    assert ranked(site, limit=2) == three[:2]
    assert ranked(site) == three
    kept = site.get(TRENDING, fresh=False).json()
    assert (kept["cached"], len(kept["items"])) == (True, 3)
    site.writer.show(second, Visibility(visibility))
    # Neither a position is asked for, nor have the analytics heard of it; owners see no other one.
    for user in (None, "alice"):
        assert ranked(site, user, fresh=False) == three[1:]
    # Those behind take the place.
    assert ranked(site, limit=2) == three[1:]
    site.writer.show(second, Visibility.PUBLIC)
    assert ranked(site) == three


def test_a_ranking_is_made_of_public_videos(site: Site) -> None:
    first, second = site.writer.video(), site.writer.video()
    happened(site, (first, 3), (second, 5))
    made = site.get(TRENDING).json()
    for listed, right in ((False, [first.id]), (True, [second.id, first.id])):
        rows(
            site.database_url,
            "UPDATE analytics.videos SET listed = %s WHERE video_id = %s RETURNING 1",
            [listed, second.id],
        )
        again = site.get(TRENDING).json()
        assert (made["cached"], again["cached"]) == (False, False)
        assert [each["video"]["videoId"] for each in again["items"]] == [str(id_) for id_ in right]


@pytest.mark.parametrize(
    ("roles", "status"),
    [([], 403), (["service"], 403), (["auditor"], 200), (["moderator"], 200), (["admin"], 200)],
)
def test_stats_are_for_the_owner_and_for_who_watches_over_the_site(
    site: Site, roles: list[str], status: int
) -> None:
    path = f"/videos/{site.writer.video('alice').id}/stats"
    assert site.get(path, "alice").status_code == 200
    answer = site.get(path, "bob", roles=roles)
    assert answer.status_code == status, answer.text
    if status == 403:
        assert "GET /videos/{video_id}" in answer.json()["detail"]
        assert "STATS_PUBLIC" in answer.json()["detail"]
    assert site.get(path).status_code == 401


def test_a_setting_opens_the_stats_of_what_a_caller_may_see(site: Site) -> None:
    site.app.state.queries = replace(site.queries, stats_public=True)
    video = site.writer.video("alice")
    path = f"/videos/{video.id}/stats"
    assert [site.get(path, user).status_code for user in (None, "bob")] == [200, 200]
    site.writer.show(video, Visibility.PRIVATE)
    assert [site.get(path, user).status_code for user in (None, "bob")] == [404, 404]
    assert site.get(path, "bob", roles=["auditor"]).status_code == 404
    assert site.get(path, "alice").status_code == 200


@pytest.mark.parametrize("path", [TRENDING, "/videos/{}/stats"])
def test_before_the_consumers_have_it_there_is_no_answer(site: Site, path: str) -> None:
    video = site.writer.video()
    path = path.format(video.id)
    kept = site.get(path, "alice")
    site.counting = False
    position = site.writer.like(video.id, "bob")
    answer = site.get(path, "alice", headers={"Backlot-Timeout-Ms": "100"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json()["type"] == "read-model-behind"
    assert answer.json()["wanted"] == encode_position(position)
    site.take_in(position)
    assert site.get(path, "alice").status_code == kept.status_code == 200
    # Telemetry of that position as well.
    later = {"Backlot-Min-Position": encode_position(position, 1), "Backlot-Timeout-Ms": "100"}
    assert site.get(path, "alice", headers=later).status_code == 503
    site.take_in(position, 1)
    assert site.get(path, "alice", headers=later).status_code == 200


def test_what_the_client_knows_is_not_sent_again(site: Site) -> None:
    video = site.writer.video()
    happened(site, (video, 3))
    answer = site.get(TRENDING)
    tag = answer.headers["ETag"]
    for known in (tag, tag.removeprefix("W/"), f'"other", {tag}', "*"):
        again = site.get(TRENDING, headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["ETag"] == tag
    assert site.get(TRENDING, headers={"If-None-Match": '"other"'}).status_code == 200
    site.writer.like(video.id, "bob")
    changed = site.get(TRENDING, headers={"If-None-Match": tag})
    assert (changed.status_code, changed.json()["cached"]) == (200, False)
    assert changed.headers["ETag"] != tag


def test_stats_over_http(site: Site) -> None:
    video = site.writer.video()
    happened(site, (video, 4))
    body = site.get(f"/videos/{video.id}/stats", "alice").json()
    assert (body["videoId"], body["timeRange"], body["bucket"]) == (str(video.id), "7d", "day")
    figures = {"views": 4, "uniqueViewers": 1, "likes": 0, "comments": 0, "shares": 0}
    assert body["totals"] == figures | {"watchMinutes": 0}
    assert len(body["series"]) == 8
    assert sum(point["views"] for point in body["series"]) == 4
    assert set(body["series"][0]) == {*body["totals"], "at"}
    assert body["series"][0]["at"].endswith("T00:00:00Z")
    hours = site.get(f"/videos/{video.id}/stats", "alice", timeRange="24h").json()
    assert (hours["bucket"], len(hours["series"])) == ("hour", 25)
    assert "uniqueViewers" not in hours["series"][0]
    days = site.get(f"/videos/{video.id}/stats", "alice", timeRange="all", bucket="day").json()
    assert days["totals"] == body["totals"]


def test_stats_are_read_again_once_more_is_counted(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not whenever something happened: while the consumer stands still, they are the same."""
    video, read = site.writer.video(), site.queries.analytics.stats
    reads = 0

    async def counted(*given: Any) -> Any:
        nonlocal reads
        reads += 1
        return await read(*given)

    monkeypatch.setattr(site.queries.analytics, "stats", counted)

    def views(**how: Any) -> int:
        answer = site.get(f"/videos/{video.id}/stats", "alice", **how)
        told: int = answer.json()["totals"]["views"]
        positions.append(answer.headers["Backlot-Position"])
        return told

    positions: list[str] = []
    happened(site, (video, 4))
    assert [views(), views(), reads] == [4, 4, 1]
    seen, site.counting = site.writer.head, False
    happened(site, (video, 9))
    liked = site.writer.like(video.id, "bob")
    assert [views(fresh=False), views(fresh=False), reads] == [4, 4, 1]
    assert positions[-1] == encode_position(seen)
    site.take_in(liked)
    assert [views(fresh=False), views(fresh=False), reads] == [9, 9, 2]
    assert positions[-1] == encode_position(liked)


def test_stats_wait_for_what_happened_around_the_video_and_no_more(site: Site) -> None:
    video, other = site.writer.video(), site.writer.video()
    path, soon = f"/videos/{video.id}/stats", {"Backlot-Timeout-Ms": "100"}
    site.get(path, "alice")
    site.counting = False
    site.writer.like(other.id, "bob")
    site.writer.like(other.id, "alice")
    assert site.get(path, "alice", headers=soon).status_code == 200
    liked = site.writer.like(video.id, "bob")
    site.writer.like(other.id, "carol")
    refused = site.get(path, "alice", headers=soon)
    assert (refused.status_code, refused.json()["wanted"]) == (503, encode_position(liked))
    site.take_in(liked)
    assert site.get(path, "alice", headers=soon).status_code == 200


def test_stats_ask_once_where_nothing_is_behind_or_nobody_counts(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = site.writer.video()
    path = f"/videos/{video.id}/stats"
    site.get(path, "alice")
    waited = []

    async def settle(*given: Any) -> None:
        waited.append(given)

    monkeypatch.setattr(site.queries.analytics._consumers, "settle", settle)
    site.forget()
    assert site.get(path, "alice", fresh=False).status_code == 200
    assert waited == []
    site.writer.like(video.id, "alice")
    assert site.get(path, "alice", fresh=False).status_code == 200
    assert len(waited) == 1
    rows(site.database_url, "DELETE FROM backlot_checkpoints WHERE kind = 'consumer' RETURNING 1")
    assert site.get(path, "alice", fresh=False).status_code == 200
    assert len(waited) == 1


def test_stats_of_what_there_is_not(site: Site) -> None:
    video = site.writer.video()
    removed(site, video)
    for video_id in (video.id, uuid4()):
        answer = site.get(f"/videos/{video_id}/stats")
        assert (answer.status_code, answer.json()["type"]) == (404, "not-found")


@pytest.mark.parametrize(
    "params",
    [{"timeRange": "1y"}, {"bucket": "minute"}, {"timeRange": "all", "bucket": "hour"}],
)
def test_stats_refuse_what_they_do_not_know(site: Site, params: dict[str, Any]) -> None:
    answer = site.get(f"/videos/{site.writer.video().id}/stats", "alice", **params)
    assert (answer.status_code, answer.json()["type"]) == (422, "invalid")


def test_without_the_analytics_only_they_are_missing(site: Site) -> None:
    video = site.writer.video()
    happened(site, (video, 4))
    kept = site.get(TRENDING).json()
    site.run(site.analytics_pool.close())
    for path in (f"/videos/{video.id}/stats", TRENDING):
        answer = site.get(path, "alice", timeRange="30d")
        assert (answer.status_code, answer.json()["type"]) == (503, "analytics-unavailable")
        assert answer.headers["Retry-After"] == "1"
    assert site.get(TRENDING).json() == kept | {"cached": True}
    assert site.get(f"/videos/{video.id}").status_code == 200

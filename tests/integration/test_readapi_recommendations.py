"""Recommendations over HTTP: whose they are, what makes them, how long they hold."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from domain.dismissals import Dismissal
from domain.dismissals import stream_id as dismissal_of
from domain.feedback import GivenList
from domain.upload import Upload, Visibility
from infra.http.shapes import encode_position
from infra.metrics import value
from projections.integration_events import VIDEO_VIEWED
from projections.recommendations.recommender import ENGAGED_PREFIX, PREFIX
from readapi.recommendations import PLAIN
from tests.integration.analytics_sinks import record
from tests.integration.event_log import rows
from tests.integration.projection_support import caught_up, origin
from tests.integration.recommendation_support import (
    ALL,
    UNSETTLED,
    Place,
    change_details,
    kept_items,
    serving,
    settings_of,
    titles,
)


@pytest.fixture
def place(database_url: str, tmp_path: Path) -> Iterator[Place]:
    """Without a language model."""
    yield from serving(database_url, tmp_path, settings_of())


@pytest.mark.parametrize("path", [ALL, "/videos/recommendations"])
def test_they_are_the_callers_own(place: Place, path: str) -> None:
    get = place.site.get
    assert get(path).status_code == 401
    refused = get(path, "ann", userId="bob")
    assert (refused.status_code, refused.json()["type"]) == (403, "forbidden")
    before = value("backlot_security_events_total", kind="personal_data_read")
    assert get(path, "ann", userId="ann").status_code == 200
    assert get(path, "root", admin=True, userId="root").status_code == 200
    assert get(path, "root", admin=True, userId="bob").status_code == 200
    # What an operator reads of somebody else is told, and nothing else.
    assert value("backlot_security_events_total", kind="personal_data_read") == before + 1


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


def test_two_settings_are_compared_in_one_list(database_url: str, tmp_path: Path) -> None:
    b = "neighbour=0,popularity_exponent=1,same_category=1"
    settings = settings_of(RECOMMENDATIONS_VARIANT_B=b)
    for place in serving(database_url, tmp_path, settings):
        seen, *others = (place.video(f"{n}", category=f"c{n % 2}") for n in range(9))
        for number in range(len(others)):
            place.watch(f"viewer {number}", seen, *others[number:])
        place.watch("ann", seen)
        body = place.ask()
        assert sorted(titles(body)) == sorted(each.title for each in others)
        teams = [each["variant"] for each in body["items"]]
        assert abs(teams.count("a") - teams.count("b")) <= 1
        assert titles(place.ask()) == titles(body)
        full = place.ask(path="/videos/recommendations")
        assert [each["variant"] for each in full["items"]] == teams
        ((key,),) = rows(database_url, "SELECT key FROM lists.key")
        given = GivenList.opened(body["listId"], "ann", key)
        assert [str(offer.variant) for offer in given.offers] == teams
        assert given.experiment == place.site.queries.recommendations.experiment
        # What was seen meanwhile leaves gaps for neither team.
        place.watch("ann", others[0])
        place.site.writer.like(others[0].id, "ann")
        left = place.site.get(ALL, "ann", fresh=False).json()
        assert others[0].title not in titles(left)
        assert abs(sum({"a": 1, "b": -1}[each["variant"]] for each in left["items"])) <= 1


def test_without_a_second_variant_nothing_is_told_of_one(place: Place) -> None:
    place.video()
    body = place.ask()
    assert [each.get("variant") for each in body["items"]] == [None]
    ((key,),) = rows(place.site.database_url, "SELECT key FROM lists.key")
    given = GivenList.opened(body["listId"], "ann", key)
    assert (given.experiment, given.offers[0].variant) == (None, "default")


@pytest.mark.parametrize(("watched", "source"), [(True, "neighbour"), (False, "new")])
def test_each_says_what_brought_it_there(place: Place, watched: bool, source: str) -> None:
    seen, near = place.video("Seen", category="a"), place.video("Near", category="b")
    if watched:
        place.watch("bob", seen, near)
        place.watch("ann", seen)
    found = {each["video"]["title"]: each["source"] for each in place.ask()["items"]}
    assert found["Near"] == source


def test_what_was_dismissed_is_left_out_before_anything_has_heard_of_it(place: Place) -> None:
    seen, near, third = (place.video(each) for each in ("Seen", "Near", "Third"))
    place.watch("bob", seen, near, third)
    place.watch("ann", seen)
    assert sorted(titles(place.ask())) == ["Near", "Third"]
    place.site.writer.save(
        dismissal := Dismissal.blank(dismissal_of(near.id, "ann")).dismiss(
            near.id, "ann", origin("ann")
        )
    )
    # Neither the position nor a read model is waited for, and the kept ones are not outdated.
    for path in (ALL, "/videos/recommendations"):
        told = place.site.get(path, "ann", fresh=False).json()
        assert (told["cached"], titles(told)) == (True, ["Third"])
    assert "Near" in titles(place.ask("cat"))
    place.site.writer.save(dismissal.take_back(near.id, "ann", origin("ann")))
    assert sorted(titles(place.site.get(ALL, "ann", fresh=False).json())) == ["Near", "Third"]


@pytest.mark.parametrize("visibility", ["private", "unlisted"])
def test_what_is_not_public_is_left_out_before_anything_has_heard_of_it(
    place: Place, visibility: str
) -> None:
    seen, near, third = (place.video(each) for each in ("Seen", "Near", "Third"))
    place.watch("bob", seen, near, third)
    place.watch("ann", seen)
    assert sorted(titles(place.ask())) == ["Near", "Third"]
    place.site.writer.show(near, Visibility(visibility))
    for path in (ALL, "/videos/recommendations"):
        told = place.site.get(path, "ann", fresh=False).json()
        assert (told["cached"], titles(told)) == (True, ["Third"])
    # Nor is it among what is merely new, to anybody.
    assert "Near" not in titles(place.ask("zoe")) + titles(place.ask("owner"))
    place.site.writer.show(near, Visibility.PUBLIC)
    assert sorted(titles(place.ask())) == ["Near", "Third"]


def test_no_reason_names_a_video_that_is_not_public(place: Place) -> None:
    seen, near = place.video("Seen"), place.video("Near")
    place.watch("bob", seen, near)
    place.watch("ann", seen)
    assert place.ask()["items"][0]["reason"] == "Because you watched “Seen”"
    place.site.writer.show(seen, Visibility.PRIVATE)
    caught_up(place.site.database_url, ["catalog"], place.site.writer.head)
    kept = place.site.get(ALL, "ann", fresh=False).json()
    assert (kept["cached"], kept["items"][0]["reason"]) == (True, PLAIN)
    made = place.ask()
    assert (made["cached"], made["items"][0]["reason"]) == (False, "Because of what you watched")


def test_what_was_dismissed_makes_room_and_says_what_is_liked_less(place: Place) -> None:
    seen = place.video("Seen", category="news")
    others = {name: place.video(name, category=name[:3]) for name in ("art 1", "art 2", "fun 1")}
    place.watch("bob", seen, *others.values())
    place.watch("cat", seen, others["art 1"])
    place.watch("ann", seen)
    scores = {each["video"]["title"]: each["score"] for each in place.ask()["items"]}
    assert list(scores) == ["art 1", *sorted(["art 2", "fun 1"], key=lambda n: -scores[n])]
    writer = place.site.writer
    writer.save(
        Dismissal.blank(dismissal_of(others["art 2"].id, "ann")).dismiss(
            others["art 2"].id, "ann", origin("ann")
        )
    )
    time.sleep(UNSETTLED)
    place.watch("ann", seen)
    now = {each["video"]["title"]: each["score"] for each in place.ask()["items"]}
    assert sorted(now) == ["art 1", "fun 1"]
    # Scores are shares of what there is: of two that stay, the one of its category falls behind.
    before = scores["art 1"] / scores["fun 1"]
    assert now["art 1"] / now["fun 1"] == pytest.approx(0.9 * before, rel=0.05)


def test_what_was_watched_and_dismissed_brings_in_nothing(place: Place) -> None:
    good, bad, near, far = (place.video(each) for each in ("Good", "Bad", "Near", "Far"))
    place.watch("bob", good, near)
    place.watch("cat", bad, far)
    place.watch("ann", good, bad)
    reasons = {each["reason"] for each in place.ask()["items"]}
    assert "Because you watched “Bad”" in reasons
    place.site.writer.save(
        Dismissal.blank(dismissal_of(bad.id, "ann")).dismiss(bad.id, "ann", origin("ann"))
    )
    time.sleep(UNSETTLED)
    place.watch("ann", good)
    again = {each["video"]["title"]: each["reason"] for each in place.ask()["items"]}
    assert again["Near"] == "Because you watched “Good”"
    assert "Because you watched “Bad”" not in again.values()


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


def near_seen(place: Place) -> tuple[Upload, Upload, Upload]:
    """One that ann has seen, and two that are recommended because of it."""
    seen, near, third = (place.video(each) for each in ("Seen", "Near", "Third"))
    place.watch("bob", seen, near, third)
    place.watch("ann", seen)
    assert {each["reason"] for each in place.ask()["items"]} == {"Because you watched “Seen”"}
    return seen, near, third


def test_a_reason_does_not_repeat_a_title_of_before(place: Place) -> None:
    seen, _, _ = near_seen(place)
    change_details(place, seen, "Seen, with sound")
    assert kept_items(place) == {"Near": PLAIN, "Third": PLAIN}


def test_a_reason_does_not_repeat_the_title_of_what_was_removed(place: Place) -> None:
    seen, _, _ = near_seen(place)
    seen.remove(origin("owner"))
    place.site.writer.save(seen)
    assert kept_items(place) == {"Near": PLAIN, "Third": PLAIN}


@pytest.mark.parametrize(("title", "category"), [("Nearer", "art"), ("Near", "nature")])
def test_what_has_changed_is_shown_as_it_is_now(place: Place, title: str, category: str) -> None:
    _, near, _ = near_seen(place)
    change_details(place, near, title, category)
    assert kept_items(place) == {title: PLAIN, "Third": "Because you watched “Seen”"}


def test_what_is_seen_by_now_is_not_among_what_was_kept(place: Place) -> None:
    """By the records themselves: no consumer runs here at all."""
    _, near, third = near_seen(place)
    place.site.writer.like(near.id, "ann")
    assert set(kept_items(place)) == {"Third"}
    place.site.writer.unlike(near.id, "ann")
    assert set(kept_items(place)) == {"Third"}
    value = {"videoId": str(third.id), "userId": "ann", "sessionId": str(uuid4())}
    value["timestamp"] = datetime.now(UTC).isoformat()
    place.site.run(record(place.site.database_url, [(VIDEO_VIEWED, uuid4(), value)]))
    assert kept_items(place) == {}
    # Others' deeds are theirs.
    assert titles(place.ask("cat")) != []


def test_a_later_position_has_them_made_again(place: Place) -> None:
    near_seen(place)
    assert place.ask()["cached"] is True
    place.site.writer.like(place.video("Liked").id, "ann")
    body = place.ask()
    assert body["cached"] is False
    assert "Liked" not in titles(body)
    assert place.ask()["cached"] is True


def test_before_the_consumers_have_it_there_is_no_answer(place: Place) -> None:
    near_seen(place)
    place.site.counting = False
    video = place.video("Liked").id
    position = place.site.writer.like(video, "ann")
    assert place.site.get(f"/videos/{video}/like", "ann").json()["hasLiked"] is True
    answer = place.site.get(ALL, "ann", headers={"Backlot-Timeout-Ms": "100"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    body = answer.json()
    assert (body["type"], body["wanted"]) == ("read-model-behind", encode_position(position))
    assert "recommendations" in body["positions"]
    # Without a position, what was kept will do.
    assert place.ask(fresh=False)["cached"] is True


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


@pytest.mark.parametrize("seconds", [1e-6, 3600])
def test_a_process_notices_in_time_what_another_one_did(
    database_url: str, tmp_path: Path, seconds: float
) -> None:
    """What is in memory is asked about in Redis once it is so old, and not before."""
    settings = settings_of(RECOMMENDATIONS_INVALIDATE_SECONDS=f"{seconds:f}")
    for place in serving(database_url, tmp_path, settings):
        _, near, _ = near_seen(place)

        async def forget_list() -> int:
            return await place.site.rankings.delete(f"{PREFIX}ann")  # noqa: B023 - as below

        def told() -> tuple[bool, int]:
            body = place.ask(fresh=False)  # noqa: B023 - called in this turn
            return body["cached"], len(body["items"])

        assert told() == told() == (True, 2)
        assert place.site.run(forget_list()) == 1
        assert told() == (seconds > 1, 2)
        assert told() == (True, 2)
        # The user watched something, as a consumer elsewhere knows.
        place.watch("ann", near)
        assert told()[0] is (seconds > 1)
        # What is only in memory was made from nobody's Redis.
        assert place.site.run(forget_list()) == (seconds < 1)

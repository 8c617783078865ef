"""The rules of what counts, one by one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from projections.analytics.rules import (
    NotCountable,
    Participant,
    Row,
    Rules,
    Session,
    WatchedVideo,
    row_of,
)

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
RULES = Rules(timedelta(hours=1), viewer_comments=2, viewer_seconds=60.0)
VIDEO, SESSION = str(uuid4()), str(uuid4())


def view(seconds: float, user: str | None = "bob") -> Row:
    at = NOW + timedelta(seconds=seconds)
    return Row(str(uuid4()), VIDEO, user, "view", at, {}, SESSION)


def report(seconds: float, reported: float, user: str | None = "bob") -> Row:
    at = NOW + timedelta(seconds=seconds)
    return Row(str(uuid4()), VIDEO, user, "watch_time", at, {}, SESSION, reported)


def counted(*rows: Row, video: WatchedVideo | None = None) -> list[Any]:
    session = Session()
    found = [session.decide(row, video or WatchedVideo(), RULES) for row in rows]
    return [each.get("counts", each.get("seconds")) for each in found]


def test_a_view_counts_once_within_the_hour() -> None:
    assert counted(view(0), view(3599), view(3600), view(7199)) == [True, False, True, False]


def test_what_did_not_count_does_not_put_off_what_does() -> None:
    assert counted(view(0), view(3000), view(3700)) == [True, False, True]


def test_watch_time_is_bounded_by_the_time_that_went_by() -> None:
    assert counted(view(0), report(10, 8), report(20, 60), report(20, 5)) == [True, 8, 10, 0]


def test_nobody_has_watched_before_viewing() -> None:
    assert counted(report(0, 5), view(10), report(14, 30)) == [0, True, 4]


def test_no_session_has_watched_more_than_there_is() -> None:
    long = WatchedVideo(duration_seconds=15.0)
    rows = (view(0), report(10, 10), report(20, 10), report(30, 10))
    assert counted(*rows, video=long) == [True, 10, 5, 0]


def test_the_owner_s_own_is_told_apart() -> None:
    session, video = Session(), WatchedVideo(owner="ann")
    owns = [session.decide(each, video, RULES)["own"] for each in (view(0, "ann"), view(1, None))]
    assert owns == [True, False]
    assert not Session().decide(view(0, None), WatchedVideo(), RULES)["own"]


def in_trending(*rows: Row, owner: str = "ann") -> list[Any]:
    """What counts in trending of a viewer's events on a video of ann's."""
    video, participant = WatchedVideo(owner), Participant()
    found = [participant.decide(row, row.metadata, video, RULES) for row in rows]
    return [each.get("trending", each.get("delta", each.get("seconds"))) for each in found]


def comment(delta: int, user: str = "bob") -> Row:
    return Row(str(uuid4()), VIDEO, user, "comment", NOW, {"delta": delta})


def watched(seconds: float) -> Row:
    metadata = {"seconds": seconds, "own": False}
    return Row(str(uuid4()), VIDEO, "bob", "watch_time", NOW, metadata)


def test_a_flood_of_comments_counts_as_few() -> None:
    assert in_trending(*[comment(1)] * 4) == [1, 1, 0, 0]


def test_comments_of_a_flood_that_are_deleted_take_nothing_but_what_counted() -> None:
    rows = [*[comment(1)] * 4, *[comment(-1)] * 4, comment(1)]
    assert in_trending(*rows) == [1, 1, 0, 0, 0, 0, -1, -1, 1]


def test_nobody_brings_less_than_nothing() -> None:
    assert in_trending(comment(-1), comment(-1), comment(1)) == [0, 0, 0]


def test_endless_watching_counts_up_to_the_cap() -> None:
    assert in_trending(watched(50), watched(50), watched(50)) == [50, 10, 0]


def test_a_viewer_without_a_name_is_its_session() -> None:
    session, video = Session(), WatchedVideo()
    rows = [view(0, None), *(report(each, 40, None) for each in (40, 80, 120))]
    told = [session.decide(row, video, RULES) for row in rows[:]][1:]
    assert [(each["seconds"], each.get("trending")) for each in told] == [
        (40, None),
        (40, 20),
        (40, 0),
    ]


def test_the_owner_likes_and_comments_for_nothing() -> None:
    like = Row(str(uuid4()), VIDEO, "ann", "like", NOW, {"delta": 1})
    assert in_trending(like, comment(1, "ann"), comment(-1, "ann")) == [0, 0, 0]
    assert in_trending(like._replace(user_id="bob")) == [1]


def message(topic: str = "video.watch_time", **changed: Any) -> Row:
    value = {
        "videoId": VIDEO,
        "userId": "bob",
        "sessionId": SESSION,
        "seconds": 3,
        "timestamp": NOW.isoformat(),
        "ts": "2026-11-26T14:00:00+02:00",
    }
    return row_of(topic, uuid4(), value | changed, NOW)


@pytest.mark.parametrize(
    ("topic", "kind", "metadata"),
    [
        ("video.liked", "like", {"delta": 1}),
        ("video.unliked", "like", {"delta": -1}),
        ("comment.created", "comment", {"delta": 1}),
        ("comment.deleted", "comment", {"delta": -1}),
        ("video.shared", "share", {}),
    ],
)
def test_what_a_message_becomes(topic: str, kind: str, metadata: dict[str, int]) -> None:
    row = message(topic)
    assert (row.event_type, row.metadata, row.session) == (kind, metadata, None)
    assert (row.at, row.at.utcoffset()) == (NOW, timedelta(0))


def test_ids_are_written_in_one_way() -> None:
    row = message(videoId=VIDEO.upper(), sessionId=f"{{{SESSION}}}")
    assert (row.video_id, row.session) == (VIDEO, SESSION)


def test_a_share_tells_where_to() -> None:
    assert message("video.shared", channel="mail").metadata == {"channel": "mail"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": -1},
        {"seconds": float("nan")},
        {"seconds": None},
        {"sessionId": "none"},
        {"sessionId": None},
        {"videoId": 7},
        {"userId": "a\x00b"},
        {"timestamp": "yesterday"},
        {"timestamp": 7},
        {"timestamp": "0001-01-01T00:00:00+01:00"},
        {"timestamp": "2026-11-27T12:00:01Z"},
    ],
)
def test_what_can_not_be_counted(wrong: dict[str, Any]) -> None:
    with pytest.raises(NotCountable):
        message(**wrong)

"""Stats of given days over HTTP: zones, owners, channels, and all of them as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import psycopg
import pytest

from domain.upload import Upload
from infra.spreadsheets import as_csv, wants_csv
from tests.integration.readapi_support import Site, serving
from tests.integration.trending_support import Deed, Film, write

CSV = {"Accept": "text/csv"}
BERLIN = ZoneInfo("Europe/Berlin")
DAY = timedelta(days=1)
EVIL = '=HYPERLINK("http://evil")'
WIDE = "\uff1d1"


@pytest.fixture
def site(database_url: str, tmp_path: Path) -> Iterator[Site]:
    with serving(database_url, tmp_path) as site:
        yield site


def noon(days_ago: int) -> datetime:
    """Noon of a day in Berlin, which is the same day in UTC."""
    day = (datetime.now(BERLIN) - days_ago * DAY).date()
    return datetime(day.year, day.month, day.day, 12, tzinfo=BERLIN)


def happened(site: Site, *videos: Upload) -> None:
    """Have each of these videos viewed twice by one, and shared, three days ago."""
    films = [Film(video.id, noon(9)) for video in videos]
    deeds = [
        Deed(film, kind, noon(3), user="ann")
        for film in films
        for kind in ("view", "view", "share")
    ]
    with psycopg.connect(site.database_url, autocommit=True) as conn:
        write(conn, films, deeds)
        for video in videos:
            conn.execute(
                "UPDATE analytics.videos SET owner = %s WHERE video_id = %s",
                (video.owner, video.id),
            )


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(text)))


def test_days_of_a_zone(site: Site) -> None:
    video = site.writer.video()
    happened(site, video)
    first, last = noon(4).date(), noon(2).date()
    path = f"/videos/{video.id}/stats"
    asked: dict[str, Any] = {"from": first, "to": last, "tz": "Europe/Berlin"}
    body = site.get(path, "alice", **asked).json()
    since = datetime(first.year, first.month, first.day, tzinfo=BERLIN)
    told = {"timeRange": "custom", "bucket": "day", "tz": "Europe/Berlin"}
    assert {name: body[name] for name in told} == told
    assert datetime.fromisoformat(body["since"]) == since
    assert [point["day"] for point in body["series"]] == [str(noon(n).date()) for n in (4, 3, 2)]
    assert [point["views"] for point in body["series"]] == [0, 2, 0]
    figures = {"views": 2, "uniqueViewers": 1, "likes": 0, "comments": 0, "shares": 1}
    assert body["totals"] == figures | {"watchMinutes": 0}
    hours = site.get(path, "alice", bucket="hour", **asked).json()
    assert sum(point["views"] for point in hours["series"]) == 2
    assert "day" not in hours["series"][0]
    week = site.get(path, "alice", tz="Asia/Kolkata").json()
    assert (week["timeRange"], week["tz"]) == ("7d", "Asia/Kolkata")
    assert week["totals"] == body["totals"]
    ever = site.get(path, "alice", timeRange="all", tz="UTC").json()
    # This video began just now.
    assert [point["day"] for point in ever["series"]] == [ever["since"][:10]]


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"from": "2026-13-01"}, None),
        ({"from": "1764547200"}, None),
        ({"from": "2999-01-01"}, "from"),
        ({"from": "0001-01-01"}, "from"),
        ({"from": "2026-01-02", "to": "2026-01-01"}, "to"),
        ({"to": "2026-01-01"}, "to"),
        ({"from": "2026-01-02", "timeRange": "7d"}, "from"),
        ({"tz": "Europe/Atlantis"}, "tz"),
        ({"tz": "../../etc/passwd"}, "tz"),
        ({"tz": "\x00"}, "tz"),
        ({"tz": ""}, None),
        ({"tz": "Asia/Kolkata", "timeRange": "24h"}, None),
        ({"tz": "UTC", "timeRange": "all", "bucket": "hour"}, "bucket"),
    ],
)
def test_periods_that_there_are_not(site: Site, params: dict[str, Any], field: str | None) -> None:
    video = site.writer.video()
    for path in (f"/videos/{video.id}/stats", "/users/alice/stats"):
        answer = site.get(path, "alice", **params)
        if params == {"tz": "Asia/Kolkata", "timeRange": "24h"}:
            # The last hours begin on the hour in UTC, whatever the zone is.
            assert answer.status_code == 200, answer.text
            continue
        assert (answer.status_code, answer.json()["type"]) == (422, "invalid"), answer.text
        if field is not None:
            assert answer.json()["field"] == field


def test_a_table_is_told_to_whom_it_is_acceptable(site: Site) -> None:
    video = site.writer.video()
    happened(site, video)
    path = f"/videos/{video.id}/stats"
    asked: list[dict[str, Any]] = [{}, {"tz": "Europe/Berlin"}, {"timeRange": "24h"}]
    for params in asked:
        body = site.get(path, "alice", **params)
        table = site.get(path, "alice", headers=CSV, **params)
        assert table.headers["Content-Type"] == "text/csv; charset=utf-8; header=present"
        assert table.headers["Vary"] == body.headers["Vary"] == "Authorization, Accept"
        assert table.headers["ETag"] != body.headers["ETag"]
        known = CSV | {"If-None-Match": table.headers["ETag"]}
        assert site.get(path, "alice", headers=known, **params).status_code == 304
        told, series = rows(table.text), body.json()["series"]
        assert list(told[0]) == [
            "at", "day", "views", "uniqueViewers", "likes", "comments", "shares", "watchMinutes",
        ]  # fmt: skip
        by_days = body.json()["bucket"] == "day"
        for row, point in zip(told, series, strict=True):
            assert (row["at"], int(row["views"])) == (point["at"], point["views"])
            assert row["uniqueViewers"] == str(point.get("uniqueViewers", ""))
            assert row["day"] == (point.get("day") or point["at"][:10] if by_days else "")


def test_all_videos_of_an_owner(site: Site) -> None:
    videos = [site.writer.video("alice") for _ in range(2)]
    happened(site, *videos, site.writer.video("bob"))
    path = "/users/alice/stats"
    body = site.get(path, "alice").json()
    assert (body["userId"], body["videos"], body["timeRange"]) == ("alice", 2, "7d")
    assert (body["totals"]["views"], body["totals"]["shares"]) == (4, 2)
    assert "uniqueViewers" not in body["totals"]
    assert sum(point["views"] for point in body["series"]) == 4
    ever = site.get(path, "alice", timeRange="all").json()
    assert ever["totals"] == body["totals"]
    assert len(rows(site.get(path, "alice", headers=CSV).text)) == len(body["series"])
    with psycopg.connect(site.database_url, autocommit=True) as conn:
        unlist = "UPDATE analytics.videos SET listed = false WHERE video_id = %s"
        conn.execute(unlist, (videos[0].id,))
    for role in ("moderator", "auditor", "admin"):
        seen = site.get(path, "carol", roles=[role]).json()
        assert (seen["videos"], seen["totals"]["views"]) == (1, 2)
    assert site.get(path, "alice").json()["videos"] == 2
    assert site.get(path, "bob").status_code == 403
    assert site.get(path).status_code == 401
    nobody = site.get("/users/nobody-ever/stats", "carol", roles=["auditor"])
    assert (nobody.status_code, nobody.json()["videos"]) == (200, 0)
    site.app.state.queries = replace(site.queries, stats_public=True)
    assert [site.get(path, who).json()["videos"] for who in (None, "bob")] == [1, 1]


def test_channels_of_shares(site: Site) -> None:
    video = site.writer.video()
    happened(site, video)
    with psycopg.connect(site.database_url, autocommit=True) as conn:
        conn.execute(
            "INSERT INTO analytics.video_analytics SELECT gen_random_uuid(), %s, NULL, 'share', %s,"
            " jsonb_build_object('channel', %s::text) FROM generate_series(1, 2)",
            (video.id, noon(3), EVIL),
        )
    path = f"/videos/{video.id}/stats/channels"
    body = site.get(path, "alice").json()
    assert (body["shares"], body["others"], body["tz"]) == (3, 0, "UTC")
    assert body["channels"][1:] == [{"channel": "mail", "shares": 1}]
    table = rows(site.get(path, "alice", headers=CSV).text)
    assert table[0] == {"channel": f"'{EVIL}", "shares": "2"}
    ever = site.get(path, "alice", timeRange="all").json()
    assert (ever["shares"], ever["timeRange"]) == (3, "all")
    old: dict[str, Any] = {"from": (datetime.now(UTC).date() - timedelta(days=3000)).isoformat()}
    assert site.get(path, "alice", **old).json()["field"] == "from"
    assert site.get(path, "bob").status_code == 403
    assert site.get(f"/videos/{uuid4()}/stats/channels", "alice").status_code == 404


def test_seconds_that_were_watched(site: Site) -> None:
    video = site.writer.video()
    happened(site, video)
    with psycopg.connect(site.database_url, autocommit=True) as conn:
        conn.execute(
            "INSERT INTO analytics.audience_hourly VALUES (%s, %s, 2, '{2000, 1000}')",
            (noon(3), video.id),
        )
        conn.execute("UPDATE analytics.videos SET duration_seconds = 2.5")
    path = f"/videos/{video.id}/stats/retention"
    asked: dict[str, Any] = {"from": noon(3).date(), "to": noon(3).date(), "tz": "Europe/Berlin"}
    body = site.get(path, "alice", **asked).json()
    told = {"durationSeconds": 2.5, "bucketSeconds": 1, "sessions": 2, "timeRange": "custom"}
    assert {name: body[name] for name in told} == told
    assert body["points"] == [
        {"second": 0, "watchedSeconds": 2.0, "share": 1.0},
        {"second": 1, "watchedSeconds": 1.0, "share": 1 / 3},
    ]
    table = rows(site.get(path, "alice", headers=CSV, **asked).text)
    assert table[0] == {"second": "0", "watchedSeconds": "2.0", "share": "1.0"}
    assert len(table) == 2
    ever = site.get(path, "alice", timeRange="all").json()
    assert (ever["points"], ever["timeRange"]) == (body["points"], "all")
    before = site.get(path, "alice", **asked | {"to": noon(4).date(), "from": noon(5).date()})
    assert before.json()["sessions"] == 0
    assert [set(point) for point in before.json()["points"]] == [{"second", "watchedSeconds"}] * 2
    old: dict[str, Any] = {"from": (datetime.now(UTC).date() - timedelta(days=3000)).isoformat()}
    assert site.get(path, "alice", **old).json()["field"] == "from"
    assert site.get(path, "bob").status_code == 403
    assert site.get(path).status_code == 401


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (None, False),
        ("*/*", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("text/csv", True),
        ("Text/CSV; q=0.5, */*", True),
        ("text/csv;q=0.5, application/json", False),
        ("application/json, text/csv", False),
        ("text/csv, application/json;q=0.9", True),
        ("text/csv;q=0", False),
        ("text/csv;q=x", False),
    ],
)
def test_who_wants_csv(accept: str | None, wanted: bool) -> None:
    assert wants_csv(accept) is wanted


def test_no_cell_is_a_formula() -> None:
    cells = ["=1+1", "+1", "-1", "@x", " =1", "\t=1", WIDE, "a=1", -1, None, 'a,b\n"c"']
    (table,) = csv.reader(StringIO(as_csv(("a",), [cells]).decode().partition("\n")[2]))
    assert table == [
        "'=1+1", "'+1", "'-1", "'@x", "' =1", "'\t=1", f"'{WIDE}", "a=1", "-1", "", 'a,b\n"c"',
    ]  # fmt: skip

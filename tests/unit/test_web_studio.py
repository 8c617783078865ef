"""What the studio makes of the API's answers, and of what its pages are asked for."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import parse_qsl

import pytest
from starlette.responses import Response

from web.api import ApiProblem
from web.studio.periods import StatsPeriod, shown
from web.studio.stats import curve
from web.studio.uploads import for_script, urls_for_page
from web.studio.videos import details_of, number
from web.templating import TEMPLATES
from web.visits import Visit

EVIL = "<script>alert(1)</script>"


def visit(cookies: dict[str, str] | None = None, **query: str) -> Visit:
    """Whatever asks for a page with this query."""
    request = SimpleNamespace(cookies=cookies or {})
    return cast(Visit, SimpleNamespace(request=request, query=query.get))


@pytest.mark.parametrize(
    ("query", "cookies", "params", "by_hours"),
    [
        ({}, {}, {"timeRange": "7d", "tz": "UTC"}, {}),
        ({"range": "24h"}, {}, {"timeRange": "24h", "tz": "UTC"}, {}),
        ({"range": "century"}, {}, {"timeRange": "7d", "tz": "UTC"}, {}),
        ({}, {"backlot_zone": "Asia/Tokyo"}, {"timeRange": "7d", "tz": "Asia/Tokyo"}, {}),
        (
            {"tz": "Europe/Berlin", "range": "all"},
            {"backlot_zone": "Asia/Tokyo"},
            {"timeRange": "all", "tz": "Europe/Berlin"},
            {},
        ),
        ({"from": "2026-11-01", "range": "30d"}, {}, {"from": "2026-11-01", "tz": "UTC"}, {}),
        (
            {"from": "2026-11-01", "to": "2026-11-01"},
            {},
            {"from": "2026-11-01", "to": "2026-11-01", "tz": "UTC"},
            {"bucket": "hour"},
        ),
    ],
)
def test_a_page_is_of_the_time_that_its_url_says(
    query: dict[str, str],
    cookies: dict[str, str],
    params: dict[str, str],
    by_hours: dict[str, str],
) -> None:
    period = StatsPeriod.asked(visit(cookies, **query))
    assert (period.params, period.by_hours) == (params, by_hours)
    # What its links say leads to the same.
    linked = dict(parse_qsl(period.query))
    assert StatsPeriod.asked(visit(None, **linked)) == period


def figures(**counts: Any) -> dict[str, Any]:
    return {"views": 0, "likes": 0, "comments": 0, "shares": 0, "watchMinutes": 0.0} | counts


def test_hours_are_those_of_the_zone_and_have_no_unique_viewers() -> None:
    # The hour that comes twice when the clocks are put back.
    times = ["2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z"]
    told = shown(
        {
            "tz": "Europe/Berlin",
            "bucket": "hour",
            "totals": figures(views=3, uniqueViewers=2),
            "series": [figures(at=times[0], views=1), figures(at=times[1], views=2)],
        }
    )
    assert told["rows"] == [
        ("2026-10-25 02:00", [1, 0, 0, 0, 0.0]),
        ("2026-10-25 02:00", [2, 0, 0, 0, 0.0]),
    ]
    assert ("uniqueViewers", "Unique viewers", 2, False) in told["figures"]
    assert told["chart"]["at"] == [1792886400, 1792890000]
    assert told["chart"]["series"]["views"] == [1, 2]
    assert "uniqueViewers" not in told["chart"]["series"]


def test_days_are_called_as_the_api_calls_them() -> None:
    point = figures(at="2026-11-20T10:00:00Z", day="2026-11-21", uniqueViewers=1)
    told = shown(
        {
            "tz": "Pacific/Apia",
            "bucket": "day",
            "totals": figures(uniqueViewers=1),
            "series": [point],
        }
    )
    assert told["rows"] == [("2026-11-21", [0, 1, 0, 0, 0, 0.0])]


def test_a_curve_is_in_percent_and_none_without_sessions() -> None:
    points = [
        {"second": 0, "watchedSeconds": 4.0, "share": 1.25},
        {"second": 2, "watchedSeconds": 1.0},
    ]
    drawn = curve({"points": points})
    assert drawn is not None
    assert (drawn["at"], drawn["series"]) == ([0], {"share": [125.0]})
    assert curve({"points": points[1:]}) is None
    assert curve({"problem": "not kept for so long"}) is None


def test_part_urls_lead_to_the_store_or_to_the_origin_of_the_page() -> None:
    stored, own = "https://s3.test/b/k?partNumber=1", "http://other.name:8000/objects/k?part=1&s=x"
    told = urls_for_page(
        [{"number": 1, "url": stored}, {"number": 2, "url": own}], ("https://s3.test",)
    )
    assert [each["url"] for each in told] == [stored, "/objects/k?part=1&s=x"]


def test_a_form_clears_what_it_leaves_empty_and_keeps_lines() -> None:
    told = details_of({"title": "Rain", "description": "one\r\ntwo", "category": "  "})
    assert told == {
        "title": "Rain",
        "description": "one\ntwo",
        "category": None,
        "visibility": "public",
        "commentPolicy": "open",
    }


def test_what_is_no_number_goes_on_as_it_is() -> None:
    assert [number(each) for each in ("12", "-1", "", "٣", "9" * 5000)] == [
        12, "-1", "", "٣", "9" * 5000,
    ]  # fmt: skip


def test_a_script_is_told_of_problems_in_json() -> None:
    @for_script
    async def refused(visit: Visit) -> Response:
        raise ApiProblem(422, {"type": "parts-mismatch", "title": "No", "missing": [2]})

    async def told() -> Response:
        return await refused(visit())

    answer = asyncio.run(told())
    assert answer.status_code == 422
    assert json.loads(bytes(answer.body))["missing"] == [2]


def test_a_comment_is_shown_with_its_translation_and_as_text() -> None:
    said = {
        "commentId": "c1",
        "videoId": "v1",
        "userId": EVIL,
        "content": EVIL,
        "language": "es",
        "translatedText": f"Translated {EVIL}",
        "translationStatus": "translated",
        "edited": False,
        "createdAt": "2026-11-20T10:00:00Z",
    }
    session = SimpleNamespace(user_id="alice", csrf="code")
    parts = SimpleNamespace(read_only=False)
    parts_of_page = TEMPLATES.get_template("studio/parts.html").make_module(
        {"visit": SimpleNamespace(session=session, parts=parts)}
    )
    page = str(parts_of_page.comment(said))  # type: ignore[attr-defined]
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3
    assert "Translated from <b>es</b>" in page

"""Which time the stats are of, and the stats of a time as a page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import httpx
from starlette.responses import Response

from web.api import ApiProblem
from web.sessions import set_cookie
from web.visits import Visit

RANGES = {"24h": "24 hours", "7d": "7 days", "30d": "30 days", "all": "All time"}
USUAL, UTC = "7d", "UTC"
ZONE = "backlot_zone"
ONE_YEAR_SECONDS = 365 * 86400
CSV, JSON = "text/csv", "application/json"
FIGURES = {
    "views": "Views",
    "uniqueViewers": "Unique viewers",
    "likes": "Likes",
    "comments": "Comments",
    "shares": "Shares",
    "watchMinutes": "Watch minutes",
}


@dataclass(frozen=True)
class StatsPeriod:
    """A range until now, or days of a zone; as the page's URL, or a cookie for the zone, has it."""

    range: str | None
    first: str | None
    last: str | None
    tz: str

    @classmethod
    def asked(cls, visit: Visit) -> StatsPeriod:
        """Return the period that a page is asked for; the API says whether it is one."""
        first, last, wanted = visit.query("from"), visit.query("to"), visit.query("range")
        tz = visit.query("tz") or visit.request.cookies.get(ZONE) or UTC
        if first is not None:
            return cls(None, first, last, tz)
        return cls(wanted if wanted in RANGES else USUAL, None, None, tz)

    @property
    def params(self) -> dict[str, str]:
        """What the API is sent."""
        if self.first is None:
            return {"timeRange": self.range or USUAL, "tz": self.tz}
        days = {"from": self.first, **({"to": self.last} if self.last else {})}
        return {**days, "tz": self.tz}

    @property
    def by_hours(self) -> dict[str, str]:
        """What the API is sent beside that for a series: one day is told by hours."""
        return {"bucket": "hour"} if self.first is not None and self.first == self.last else {}

    @property
    def query(self) -> str:
        """This period in the URL of a page."""
        told = {"range": self.range, "from": self.first, "to": self.last, "tz": self.tz}
        return urlencode({name: value for name, value in told.items() if value})

    def ranges(self) -> list[tuple[str, str, bool]]:
        """Return the name, the query and whether it is shown of each range until now."""
        return [
            (name, urlencode({"range": each, "tz": self.tz}), each == self.range)
            for each, name in RANGES.items()
        ]


def keep_zone(visit: Visit, response: Response, period: StatsPeriod) -> Response:
    """Have the browser keep the zone that its page was asked for, and that the API knows."""
    if visit.query("tz"):
        set_cookie(response, ZONE, period.tz, ONE_YEAR_SECONDS, secure=visit.parts.secure)
    return response


def shown(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Return stats as templates show them: totals, the series for a chart, and as a table.

    Unique viewers are told by days and in totals, and of one video alone.
    """
    zone, by_days = ZoneInfo(stats["tz"]), stats["bucket"] == "day"
    points = stats["series"]
    times = [datetime.fromisoformat(point["at"]) for point in points]
    told = [name for name in FIGURES if any(name in point for point in points)]
    return {
        "figures": [
            (name, label, stats["totals"][name], name in told)
            for name, label in FIGURES.items()
            if name in stats["totals"]
        ],
        "columns": [(name, FIGURES[name]) for name in told],
        "rows": [
            (
                point["day"] if by_days else f"{time.astimezone(zone):%Y-%m-%d %H:%M}",
                [point.get(name) for name in told],
            )
            for time, point in zip(times, points, strict=True)
        ],
        "chart": {
            "at": [int(time.timestamp()) for time in times],
            "byDays": by_days,
            "tz": stats["tz"],
            "series": {name: [point.get(name) for point in points] for name in told},
            "labels": {name: FIGURES[name] for name in told},
        },
    }


async def read_series(
    visit: Visit, where: str, period: StatsPeriod, accept: str = JSON
) -> httpx.Response:
    """Return the stats of a period; one day by hours, unless those of its zone are no hours."""
    headers = {"Accept": accept}
    try:
        params = period.params | period.by_hours
        return await visit.api.answer("GET", where, params=params, headers=headers)
    except ApiProblem as problem:
        if problem.body.get("field") != "bucket":
            raise
    return await visit.api.answer("GET", where, params=period.params, headers=headers)


def saved(answer: httpx.Response, name: str) -> Response:
    """Return a table of the API as a file to save."""
    headers = {
        "Content-Type": answer.headers["content-type"],
        "Content-Disposition": f'attachment; filename="{name}.csv"',
    }
    return Response(answer.content, headers=headers)

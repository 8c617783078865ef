"""What trends, and why: the components of a score in words, as a bar and as figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from starlette.responses import Response

from web.site.acts import whole
from web.site.videos import categories
from web.visits import Visit, page

PLACES = 20
RANGES = {"7d": "This week", "30d": "This month", "all": "All time"}
CREDITS = {
    "views": "views",
    "likes": "likes",
    "comments": "comments",
    "watchMinutes": "minutes watched",
}
BOOST, PENALTY = "recencyBoost", "agePenalty"
# What is less of the points is not worth a word.
WORTH_A_WORD = 0.05


class ScoreSegment(NamedTuple):
    """A piece of the bar of a score: where it lies, in percent of the bar."""

    name: str
    at: float
    width: float


class Why(NamedTuple):
    """Why a video is where it is."""

    words: str
    bar: list[ScoreSegment]


def why(components: Mapping[str, float]) -> Why:
    """Return what brought a video its points, and what took them away."""
    gained = {name: max(0.0, components[name]) for name in (*CREDITS, BOOST)}
    base = sum(gained.values())
    if base <= 0:
        return Why("Nothing counted yet.", [])
    words = [_gains({name: gained[name] for name in CREDITS})]
    boost = components[BOOST] / base
    if boost >= WORTH_A_WORD:
        words.append(f"{_percent(boost)} of its points are for what happened in the last hours.")
    lost = components[PENALTY] / base
    if lost >= WORTH_A_WORD:
        words.append(f"Its age has taken {_percent(lost)} of them away.")
    return Why(" ".join(filter(None, words)), _bar(gained, base))


def _gains(gained: Mapping[str, float]) -> str:
    whole = sum(gained.values())
    largest = sorted(gained, key=gained.__getitem__, reverse=True)
    told = [
        f"{CREDITS[name]} ({_percent(gained[name] / whole)})"
        for name in largest
        if whole and gained[name] / whole >= WORTH_A_WORD
    ]
    if not told:
        return ""
    first, *rest = told
    return f"Mostly for its {first}{', then ' + ', '.join(rest) if rest else ''}."


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\u00a0%"


def _bar(gained: Mapping[str, float], base: float) -> list[ScoreSegment]:
    bar, at = [], 0.0
    for name, points in gained.items():
        width = 100 * points / base
        if width:
            bar.append(ScoreSegment(name, round(at, 2), round(width, 2)))
        at += width
    return bar


async def trending(visit: Visit) -> Response:
    period = visit.query("timeRange") or "7d"
    chosen = visit.query("category")
    ranking = await visit.api.get(
        "/analytics/trending", timeRange=period, category=chosen, limit=PLACES
    )
    return visit.page(
        "site/trending.html",
        ranking=whole(ranking),
        why=[why(each["components"]) for each in ranking["items"]],
        ranges=RANGES,
        period=period,
        categories=await categories(visit, chosen),
        chosen=chosen,
        names={**CREDITS, BOOST: "counted again, as recent", PENALTY: "taken away by age"},
    )


ROUTES = [page("/watch/trending", trending)]

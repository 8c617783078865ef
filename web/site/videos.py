"""Lists of videos: the newest, of one category, and those that the visitor likes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any
from zlib import crc32

from starlette.responses import Response

from web.site.acts import whole
from web.templating import TEMPLATES
from web.visits import ANYBODY, Visit, page

PAGE = 24
# Categories are told of the newest videos, so many at most, the most used first.
LOOKED_AT, MOST_CATEGORIES = 100, 12
TINTS = 8


def tint(text: str | None) -> int:
    """Return which of the colours a thing of this name has: always the same."""
    return crc32((text or "").encode()) % TINTS


TEMPLATES.filters["tint"] = tint


Choices = list[tuple[str, str]]


async def categories(visit: Visit, chosen: str | None) -> Choices:
    """Return the categories that one may choose from: those of the newest videos."""
    latest = await visit.anonymous.get("/videos", limit=LOOKED_AT)
    return chosen_from(latest["items"], chosen)


def chosen_from(videos: Iterable[Mapping[str, Any]], chosen: str | None) -> Choices:
    """Return the categories of videos, the most used first, and the chosen one in any case."""
    counted = Counter(each["category"] for each in videos if each.get("category"))
    found = [name for name, _ in counted.most_common(MOST_CATEGORIES)]
    if chosen is not None and chosen not in found:
        found.insert(0, chosen)
    return [("", "All"), *((name, name) for name in found)]


async def newest(visit: Visit) -> Response:
    chosen = visit.query("category")
    found = await visit.api.get(
        "/videos", category=chosen, cursor=visit.query("cursor"), limit=PAGE
    )
    choices = await categories(visit, chosen)
    return visit.page("site/newest.html", videos=whole(found), categories=choices, chosen=chosen)


async def liked(visit: Visit) -> Response:
    found = await visit.api.get("/videos/liked", cursor=visit.query("cursor"), limit=PAGE)
    return visit.page("site/liked.html", videos=whole(found))


ROUTES = [
    page("/", newest),
    page("/watch/liked", liked, ANYBODY),
]

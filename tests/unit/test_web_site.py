"""The site's own logic, and the pages of a process where it is off."""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

import httpx
import pytest
from starlette.requests import Request

from tests.support import PROJECT
from web.api import ApiProblem
from web.app import make_web_app
from web.sealed import Box
from web.site.acts import number, whole
from web.site.trending import why
from web.site.videos import chosen_from
from web.visits import WebParts

pytestmark = pytest.mark.anyio

MOST_BYTES = 200_000


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def components(**points: float) -> dict[str, float]:
    names = ("views", "likes", "comments", "watchMinutes", "recencyBoost", "agePenalty")
    return dict.fromkeys(names, 0.0) | points


def words(**points: float) -> str:
    return why(components(**points)).words.replace("\u00a0", " ")


def test_why_is_told_in_the_order_of_what_counts() -> None:
    told = words(views=20, likes=70, comments=10)
    assert told == "Mostly for its likes (70 %), then views (20 %), comments (10 %)."


def test_why_tells_of_recent_hours_and_of_age() -> None:
    told = words(views=50, recencyBoost=50, agePenalty=80)
    assert told == (
        "Mostly for its views (100 %). "
        "50 % of its points are for what happened in the last hours. "
        "Its age has taken 80 % of them away."
    )


def test_what_is_next_to_nothing_is_no_word() -> None:
    assert words(views=99, likes=1, agePenalty=1) == "Mostly for its views (99 %)."
    assert words() == "Nothing counted yet."


def test_likes_that_were_taken_back_are_no_part_of_the_bar() -> None:
    told = why(components(views=10, likes=-5))
    assert [(piece.name, piece.at, piece.width) for piece in told.bar] == [("views", 0.0, 100.0)]


def test_the_bar_is_as_long_as_its_pieces() -> None:
    bar = why(components(views=1, likes=2, comments=3, watchMinutes=1, recencyBoost=3)).bar
    assert [(piece.name, piece.at, piece.width) for piece in bar] == [
        ("views", 0.0, 10.0),
        ("likes", 10.0, 20.0),
        ("comments", 30.0, 30.0),
        ("watchMinutes", 60.0, 10.0),
        ("recencyBoost", 70.0, 30.0),
    ]


def test_categories_are_those_of_videos_and_the_chosen_one() -> None:
    videos: list[dict[str, Any]] = [{"category": "art"}, {}, {"category": "news"}]
    videos.append({"category": "news"})
    assert chosen_from(videos, None) == [("", "All"), ("news", "news"), ("art", "art")]
    assert [value for value, _ in chosen_from(videos, "rare")] == ["", "rare", "news", "art"]


def test_a_member_that_is_left_out_is_none_at_any_depth() -> None:
    told = whole({"items": [{"video": {"title": "Rain"}}]})
    assert told["items"][0]["video"]["description"] is None
    assert told["nextCursor"] is None


@pytest.mark.parametrize("text", ["", "ten", "nan", "inf"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ApiProblem) as refused:
        number({"seconds": text}, "seconds")
    assert refused.value.status == 422


def pages(*, site: bool, status: int = 404, told: object = None) -> httpx.AsyncClient:
    """Return a client of pages whose APIs answer everything in the same way."""

    def connect(_: Request) -> httpx.AsyncClient:
        api = httpx.MockTransport(lambda request: httpx.Response(status, json=told or {}))
        return httpx.AsyncClient(transport=api, base_url="http://api.invalid")

    app = make_web_app(WebParts(connect=connect, box=Box("a secret"), site=site))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pages.invalid")


async def test_where_it_is_off_there_is_no_page_of_it() -> None:
    async with pages(site=False) as client:
        front = await client.get("/")
        assert (front.status_code, front.headers["location"]) == (303, "/studio")
        for path in (f"/watch/{uuid4()}", "/watch/trending", "/watch/liked"):
            assert "There is nothing at this address." in (await client.get(path)).text


@pytest.mark.parametrize(
    "act", ["like", "report", "ticket", "not-interested", "comments", "comments/edit"]
)
async def test_who_has_no_token_acts_nowhere(act: str) -> None:
    async with pages(site=True) as client:
        sent = await client.post(f"/watch/{uuid4()}/{act}", data={"on": "1"})
    assert sent.status_code == 303
    assert sent.headers["location"].startswith("/login?next=")


BEGUN = {"url": "http://objects.invalid/film", "sessionId": str(uuid4())}
BY_SCRIPT = {"HX-Request": "true", "HX-Current-URL": "http://pages.invalid/watch/this"}


async def test_who_has_no_token_watches_where_anybody_may() -> None:
    async with pages(site=True, status=200, told=BEGUN) as client:
        film = f"/watch/{uuid4()}/play"
        assert (await client.post(film, headers=BY_SCRIPT)).json() == BEGUN
        assert (await client.post(film)).headers["location"] == BEGUN["url"]
        from_elsewhere = {"Sec-Fetch-Site": "cross-site"}
        assert (await client.post(film, headers=from_elsewhere)).status_code == 403


async def test_who_has_no_token_is_led_to_the_login_where_nobody_may() -> None:
    async with pages(site=True, status=401) as client:
        refused = await client.post(f"/watch/{uuid4()}/play", headers=BY_SCRIPT)
    assert refused.headers["hx-redirect"] == "/login?next=/watch/this"


def test_the_pictures_are_those_of_the_readme_and_small() -> None:
    named = set(re.findall(r"\]\((docs/pictures/[^)]+)\)", (PROJECT / "README.md").read_text()))
    there = {str(path.relative_to(PROJECT)) for path in (PROJECT / "docs/pictures").iterdir()}
    assert named == there
    assert [name for name in there if (PROJECT / name).stat().st_size > MOST_BYTES] == []

"""Pages of the console: the commands that they offer to be copied into a shell."""

from __future__ import annotations

import html
import re
import shlex
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.command_line import readable
from tests.unit.test_web import Answers, logged_in
from web.console.integrity import LEAST, WIDTH, ribbon
from web.console.log import command

HOSTILE = """ann's "$(id)" `id`; <b>rm</b> -rf ~"""
NOTHING: dict[str, Any] = {"items": []}
STATS = {"events": 0, "streams": 0, "head": 0, "unreadable": 0, "topics": [], "aggregates": []}
TRACE = {"correlationId": HOSTILE, "events": 0, "truncated": False, "root": {"kind": "request"}}
PLACES: list[tuple[str, Answers]] = [
    (
        f"/console/log?{urlencode({'actor': HOSTILE})}",
        {
            "GET /admin/overview": (200, {"log": {"head": 0}}),
            "GET /audit/events": (200, NOTHING),
            "GET /audit/stats": (200, STATS),
        },
    ),
    ("/console/trace/of-it", {"GET /audit/trace/of-it": (200, TRACE)}),
    (f"/console/privacy?{urlencode({'user': HOSTILE})}", {}),
    (
        f"/console/operations?{urlencode({'actor': HOSTILE})}",
        {"GET /admin/operations": (200, NOTHING)},
    ),
]


@pytest.mark.parametrize(("where", "answers"), PLACES, ids=[where[:20] for where, _ in PLACES])
def test_what_others_have_named_is_one_word_of_a_command(where: str, answers: Answers) -> None:
    """A request's id is chosen by whoever sends it, and a link's filters by whoever sends that."""
    answer = logged_in("admin", answers=answers).get(where)
    assert answer.status_code == 200, answer.text
    assert "<b>rm" not in answer.text
    copied = [html.unescape(each) for each in re.findall(r'data-copy="([^"]*)"', answer.text)]
    assert copied
    for each in copied:
        words = shlex.split(each)
        assert (words[0], words[-1]) == ("backlot", HOSTILE)
        assert readable(tuple(words[1:])), words


def test_every_filter_of_the_log_is_an_option_of_its_command() -> None:
    given = {
        "type": "comment.posted",
        "aggregate": "comment",
        "actor": "ann lee",
        "stream": "00000000-0000-4000-8000-000000000007",
        "correlationId": "r 1",
        "from": "2026-11-22T09:30:00Z",
        "to": "2026-11-22T10:30:00Z",
        "before": "7",
        "order": "asc",
    }
    words = shlex.split(command(given))
    assert words[:3] == ["backlot", "events", "list"]
    assert words[4::2] == list(given.values())
    assert readable(tuple(words[1:])), words


def test_a_request_whose_id_fits_into_no_path_is_looked_for_in_the_log() -> None:
    answer = logged_in("auditor").get("/console/trace/of/it")
    assert answer.headers["location"] == "/console/log?correlationId=of%2Fit"
    answer = logged_in("auditor").get("/console/trace?requestId=of/it")
    assert answer.headers["location"] == "/console/trace/of%2Fit"


def test_the_ribbon_is_as_wide_as_it_is_and_shows_the_smallest_seal() -> None:
    seals: list[dict[str, Any]] = [
        {"number": 2, "firstPosition": 11, "lastPosition": 11, "anchored": False},
        {"number": 1, "firstPosition": 1, "lastPosition": 10, "anchored": True, "signature": "s"},
    ]
    first, second = ribbon(seals)
    assert (first.number, first.x, first.kind) == (1, 0.0, "anchored")
    assert (second.x, second.kind) == (first.width, "plain")
    assert second.width > LEAST
    assert second.x + second.width == pytest.approx(WIDTH)
    assert ribbon([]) == []


def test_a_users_list_shows_the_first_and_says_how_many_there_are() -> None:
    """Titles are asked for one by one, so that only so many are."""
    videos = [f"video-{number:02}" for number in range(70)]
    found = {
        "source": "blend",
        "candidates": [
            {"videoId": each, "score": 1.0, "sources": ["trending"], "reason": "It trends."}
            for each in videos
        ],
        "filtered": [{"videoId": each, "why": "own"} for each in reversed(videos)],
    }
    titles: Answers = {f"GET /videos/{each}": (200, {"title": f"of {each}"}) for each in videos}
    answers: Answers = {"GET /recommendations/why": (200, found), **titles}
    answer = logged_in("admin", answers=answers).get("/console/why/user?user=ann")
    assert answer.status_code == 200, answer.text
    assert "of video-19<" in answer.text
    assert "of video-69: own" in answer.text
    assert "of video-20" not in answer.text
    assert answer.text.count("The first 20 of 70.") == 2

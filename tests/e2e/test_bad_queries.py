"""Lists, cursors and positions asked for wrongly: the documented problem each, never a 5xx."""

from __future__ import annotations

import httpx
import pytest

from tests.e2e.program import Program
from tests.e2e.videos import everything, problem, read, see


@pytest.mark.parametrize(
    "params",
    [
        {"limit": "0"},
        {"limit": "-1"},
        {"limit": "101"},
        {"limit": "many"},
        {"limit": "9" * 400},
        {"cursor": ""},
        {"cursor": "nonsense"},
        {"cursor": "🎬"},
        {"cursor": "x" * 5_000},
        {"cursor": "bGlrZWQ6MQ"},
        {"cursor": "dmlkZW9zOi0x"},
        {"cursor": "dmlkZW9zOjk5OTk5OTk5OTk5OTk5OTk5OTk5"},
        {"cursor": "bGlrZWQ6MTE", "limit": "x"},
        {"owner": ""},
        {"owner": "x" * 129},
        {"owner": "\x00"},
        {"category": "\x00"},
        {"category": "x" * 51},
    ],
    ids=lambda params: repr(params)[:40],
)
def test_a_list_asked_for_wrongly(nobody: httpx.Client, params: dict[str, str]) -> None:
    problem(nobody.get("/videos", params=params), 422)


def test_a_cursor_of_another_list(server: Program, alice: httpx.Client, film: str) -> None:
    for _ in range(2):
        see(alice, alice.post(f"/videos/{film}/comments", json={"content": "x"}))
    comments = everything(alice, f"/videos/{film}/comments")
    assert len(comments) >= 2
    page = read(alice.get(f"/videos/{film}/comments", params={"limit": 1}))
    for path in ("/videos", "/videos/liked"):
        answer = alice.get(path, params={"cursor": page["nextCursor"]})
        problem(answer, 422, "cursor-invalid")


def test_bytes_in_a_query_that_are_no_text(nobody: httpx.Client) -> None:
    answer = nobody.get("/videos?owner=%ff%fe&category=%c3%28")
    assert answer.status_code == 200
    assert read(answer)["items"] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Backlot-Min-Position", ""),
        ("Backlot-Min-Position", "nonsense"),
        ("Backlot-Min-Position", "\xe9"),
        ("Backlot-Min-Position", "x" * 5_000),
        ("Backlot-Min-Position", "YmFja2xvdDotMQ"),
        ("Backlot-Min-Position", "b3RoZXI6MQ"),
        ("Backlot-Min-Position", "YmFja2xvdDo5OTk5OTk5OTk5OTk5OTk5OTk5OTk5"),
        ("Backlot-Timeout-Ms", "-1"),
        ("Backlot-Timeout-Ms", "soon"),
        ("Backlot-Timeout-Ms", "1e3"),
    ],
)
def test_a_wrong_freshness(nobody: httpx.Client, name: str, text: str) -> None:
    problem(nobody.get("/videos", headers={name.encode(): text.encode("latin-1")}), 422)

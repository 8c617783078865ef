"""Uploading, as the tests need it, and what every answer of the API has to look like."""

from __future__ import annotations

from typing import Any

import httpx

from backlot.demo.script import bundled_film
from tests.e2e import plain

MP4 = bundled_film().read_bytes()


def start(client: httpx.Client, content: bytes = MP4, **details: Any) -> dict[str, Any]:
    """Begin an upload of `content`; every later read of the client sees it."""
    body = {
        "title": "Counting",
        "filename": "counting.mp4",
        "contentType": "video/mp4",
        "sizeBytes": len(content),
        **details,
    }
    answer = client.post("/uploads", json=body)
    assert answer.status_code == 201, answer.text
    see(client, answer)
    return read(answer)


def pieces(content: bytes, started: dict[str, Any]) -> list[bytes]:
    """The bytes of each part."""
    size = started["partSizeBytes"]
    return [content[at : at + size] for at in range(0, len(content), size)]


def send_parts(started: dict[str, Any], content: bytes = MP4) -> list[dict[str, Any]]:
    """PUT every part, without a token; returns what completing needs."""
    sent = []
    for part, piece in zip(started["parts"], pieces(content, started), strict=True):
        answer = plain.put(part["url"], content=piece)
        assert answer.status_code == 200, answer.text
        sent.append({"number": part["number"], "etag": answer.headers["ETag"]})
    return sent


def upload(client: httpx.Client, content: bytes = MP4, **details: Any) -> str:
    """A completed video's id; every later read of anybody sees it."""
    started = start(client, content, **details)
    parts = send_parts(started, content)
    answer = client.post(f"/uploads/{started['uploadId']}/complete", json={"parts": parts})
    assert answer.status_code == 200, answer.text
    see(client, answer)
    video_id: str = answer.json()["videoId"]
    read(client.get(f"/videos/{video_id}"))
    return video_id


def see(client: httpx.Client, answer: httpx.Response) -> None:
    """Make the client's queries wait for what this answer acknowledged."""
    client.headers["Backlot-Min-Position"] = answer.headers["Backlot-Position"]
    client.headers["Backlot-Timeout-Ms"] = "20000"


def read(answer: httpx.Response) -> dict[str, Any]:
    """The JSON object in a successful answer."""
    assert answer.is_success, answer.text
    found = answer.json()
    assert isinstance(found, dict)
    return found


def problem(answer: httpx.Response, status: int, slug: str | None = None) -> dict[str, Any]:
    """The problem in an answer that has to be one, told in full."""
    assert answer.status_code == status, f"{answer.status_code}: {answer.text}"
    assert answer.headers["Content-Type"] == "application/problem+json"
    found = answer.json()
    assert isinstance(found, dict)
    assert found["status"] == status
    assert found["requestId"] == answer.headers["X-Request-Id"]
    assert found["title"]
    assert found["detail"]
    assert slug in (None, found["type"]), found
    return found


def everything(client: httpx.Client, path: str, limit: int = 100) -> list[dict[str, Any]]:
    """All items of a list, page by page."""
    page = read(client.get(path, params={"limit": limit}))
    items: list[dict[str, Any]] = page["items"]
    while "nextCursor" in page:
        params = {"limit": str(limit), "cursor": page["nextCursor"]}
        page = read(client.get(path, params=params))
        items += page["items"]
    return items

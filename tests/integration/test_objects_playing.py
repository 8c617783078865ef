"""Fetching objects over real HTTP: permission, ranges, revalidation, and headers that disarm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from infra.objects.folder import FolderStore
from tests.integration.object_server import folder_store, object_server
from tests.integration.object_upload import etag_of, ref

CONTENT = bytes(range(256)) * 4096
SIZE = len(CONTENT)


@dataclass(frozen=True)
class Film:
    """A stored object, and how to fetch it."""

    store: FolderStore
    key: str
    client: httpx.Client

    def url(self, content_type: str = "video/mp4", filename: str = "film.mp4") -> str:
        return self.store.get_url(self.key, content_type, filename, "").url

    def get(self, **headers: str) -> httpx.Response:
        return self.client.get(self.url(), headers=headers)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Film]:
    root = tmp_path_factory.mktemp("films")
    store, key = folder_store(root), f"videos/{uuid4()}"
    with object_server(root) as server, httpx.Client(base_url=server.url) as client:
        with start_blocking_portal() as portal:
            upload = portal.call(store.begin, key)
            url = store.part_url(key, upload, 1, SIZE, server.url).url
            assert client.put(url, content=CONTENT).status_code == 200
            portal.call(store.complete, key, upload, [ref(1, CONTENT)])
        yield Film(store, key, client)


def test_the_whole_object(film: Film) -> None:
    answer = film.get()
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["etag"] == f'"{etag_of(CONTENT)}"'
    assert answer.headers["accept-ranges"] == "bytes"


def test_head_tells_the_same_without_a_body(film: Film) -> None:
    answer = film.client.head(film.url(), headers={"Range": "bytes=0-9"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(SIZE)
    assert answer.headers["etag"] == film.get().headers["etag"]


@pytest.mark.parametrize(
    ("asked", "first", "end"),
    [
        ("bytes=0-", 0, SIZE),
        ("bytes=0-0", 0, 1),
        ("bytes=1000-1999", 1000, 2000),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        (f"bytes=10-{SIZE * 9}", 10, SIZE),
        ("bytes=-7", SIZE - 7, SIZE),
        (f"bytes=-{SIZE * 9}", 0, SIZE),
    ],
)
def test_one_range(film: Film, asked: str, first: int, end: int) -> None:
    answer = film.get(Range=asked)
    assert (answer.status_code, answer.content) == (206, CONTENT[first:end])
    assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(end - first)


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=-0"])
def test_a_range_after_the_end(film: Film, asked: str) -> None:
    answer = film.get(Range=asked)
    assert (answer.status_code, answer.json()["type"]) == (416, "range-not-satisfiable")
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=9-2",
        "bytes=-",
        "bytes=a-b",
        "bytes=0-1,4-5",
        "lines=1-2",
        "bytes=" + "9" * 5000 + "-",
    ],
)
def test_ranges_that_are_ignored(film: Film, asked: str) -> None:
    answer = film.get(Range=asked)
    assert (answer.status_code, len(answer.content)) == (200, SIZE)


def test_if_range_gives_the_range_only_of_the_same_object(film: Film) -> None:
    whole = film.get()
    for same in (whole.headers["etag"], whole.headers["last-modified"]):
        assert film.get(Range="bytes=0-3", **{"If-Range": same}).status_code == 206
    for other in ('"other"', f"W/{whole.headers['etag']}", "Thu, 01 Jan 1970 00:00:00 GMT"):
        answer = film.get(Range=f"bytes={SIZE}-", **{"If-Range": other})
        assert (answer.status_code, len(answer.content)) == (200, SIZE)


def test_if_none_match_spares_the_body(film: Film) -> None:
    etag = film.get().headers["etag"]
    for named in (etag, f'"other", W/{etag}', "*"):
        answer = film.get(**{"If-None-Match": named})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
    assert film.get(**{"If-None-Match": '"other"'}).status_code == 200


def test_markup_can_neither_run_nor_be_guessed(film: Film) -> None:
    answer = film.client.get(film.url("text/html", "page.html"))
    policy = answer.headers["content-security-policy"]
    assert policy == "default-src 'none'; media-src 'self'; sandbox allow-same-origin"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("content_type", "sent"),
    [
        ("video/mp4", "video/mp4"),
        ("video/mp4\r\nSet-Cookie: a=b", "application/octet-stream"),
        ("vidéo/mp4", "application/octet-stream"),
        ("", "application/octet-stream"),
    ],
)
def test_only_a_clean_type_becomes_a_header(film: Film, content_type: str, sent: str) -> None:
    answer = film.client.get(film.url(content_type))
    assert (answer.status_code, answer.headers["content-type"]) == (200, sent)
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("filename", "sent"),
    [
        ("film.mp4", 'inline; filename="film.mp4"'),
        ("../../etc/passwd", 'inline; filename="passwd"'),
        ('a"b\r\nX: y.mp4', "inline; filename*=utf-8''a%22bX%3A%20y.mp4"),
        ("фильм.mp4", "inline; filename*=utf-8''%D1%84%D0%B8%D0%BB%D1%8C%D0%BC.mp4"),
        ("\ud800", 'inline; filename="video"'),
        ("", 'inline; filename="video"'),
    ],
)
def test_any_file_name_becomes_a_safe_header(film: Film, filename: str, sent: str) -> None:
    answer = film.client.get(film.url(filename=filename))
    assert (answer.status_code, answer.headers["content-disposition"]) == (200, sent)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("contentType=video", "contentType=text"),
        ("film.mp4", "other.mp4"),
        ("expires=", "expires=9"),
        ("signature=", "signature=é"),
        ("?", "?only="),
    ],
)
def test_a_changed_url_gives_no_permission(film: Film, old: str, new: str) -> None:
    for method in ("GET", "HEAD"):
        assert film.client.request(method, film.url().replace(old, new)).status_code == 403


def test_an_expired_url_gives_no_permission(film: Film, tmp_path: Path) -> None:
    past = folder_store(tmp_path, at=datetime.now(UTC) - timedelta(hours=2))
    answer = film.client.get(past.get_url(film.key, "video/mp4", "film.mp4", "").url)
    assert (answer.status_code, answer.json()["type"]) == (403, "url-expired")


def test_a_signed_url_of_no_object(film: Film) -> None:
    url = film.store.get_url(f"videos/{uuid4()}", "video/mp4", "film.mp4", "").url
    answer = film.client.get(url)
    assert (answer.status_code, answer.json()["type"]) == (404, "object-unknown")


def test_numbers_that_are_none_are_a_problem(film: Film) -> None:
    answer = film.client.get("/objects/videos/x?expires=soon")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"

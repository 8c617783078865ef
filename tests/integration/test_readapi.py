"""Every query of the contract, over HTTP, on projections that follow a real log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from domain.upload import Upload
from engine.checkpoints import pause
from infra.metrics import value
from infra.objects.port import ObjectStoreUnavailable
from projections.catalog import Catalog
from projections.comments import Comments
from projections.likes import Likes
from tests.integration.event_log import rows
from tests.integration.projection_support import origin
from tests.integration.readapi_support import Site, serving


@pytest.fixture
def site(database_url: str, tmp_path: Path) -> Iterator[Site]:
    with serving(database_url, tmp_path) as site:
        yield site


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == answer.status_code
    assert body["requestId"] == answer.headers["x-request-id"]
    return answer.status_code, body["type"]


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["videoId"] for item in answer.json()["items"]]


def test_a_video_as_anybody_sees_it(site: Site) -> None:
    video = site.writer.video("alice", title="Rain", description="One take.", category="nature")
    site.writer.like(video.id, "bob", "eve")
    site.writer.comment(video.id)
    site.view(video, 3)
    answer = site.get(f"/videos/{video.id}")
    assert answer.status_code == 200
    assert video.completed_at is not None
    assert answer.json() == {
        "videoId": str(video.id),
        "title": "Rain",
        "description": "One take.",
        "category": "nature",
        "ownerId": "alice",
        "status": "completed",
        "visibility": "public",
        "createdAt": video.completed_at.isoformat().replace("+00:00", "Z"),
        "likes": 2,
        "comments": 1,
        "views": 3,
    }


def test_a_known_caller_is_told_whether_they_like_it(site: Site) -> None:
    video = site.writer.video()
    site.writer.like(video.id, "bob")
    for path in (f"/videos/{video.id}", f"/videos/{video.id}/like"):
        assert site.get(path, "bob").json()["hasLiked"] is True
        assert site.get(path, "eve").json()["hasLiked"] is False
        assert "hasLiked" not in site.get(path).json()
    assert site.get(f"/videos/{video.id}/like", "bob").json() == {
        "hasLiked": True,
        "likesCount": 1,
    }
    assert site.get("/videos", "bob").json()["items"][0]["hasLiked"] is True
    assert "hasLiked" not in site.get("/videos").json()["items"][0]


def test_what_is_no_video_is_not_found(site: Site) -> None:
    removed = site.writer.video()
    removed.remove(origin())
    site.writer.save(removed)
    started = site.writer.upload()
    for unseen in (removed.id, started.id, uuid4()):
        for path in (f"/videos/{unseen}", f"/videos/{unseen}/like", f"/videos/{unseen}/comments"):
            assert problem(site.get(path, "alice")) == (404, "not-found")
    assert ids(site.get("/videos")) == []
    assert problem(site.get(f"/uploads/{removed.id}", "alice")) == (404, "not-found")


def test_lists_of_videos(site: Site) -> None:
    one = site.writer.video("alice", category="nature")
    two = site.writer.video("bob", category="nature")
    three = site.writer.video("alice", category="cities")
    assert ids(site.get("/videos")) == [str(three.id), str(two.id), str(one.id)]
    assert ids(site.get("/videos", owner="alice")) == [str(three.id), str(one.id)]
    assert ids(site.get("/videos", category="nature")) == [str(two.id), str(one.id)]
    assert ids(site.get("/videos", owner="alice", category="nature")) == [str(one.id)]
    assert ids(site.get("/videos", owner="nobody")) == []


def test_pages_are_stable_while_videos_are_added(site: Site) -> None:
    first = [site.writer.video() for _ in range(7)]
    found: list[str] = []
    cursor: dict[str, Any] = {}
    pages = 0
    while True:
        answer = site.get("/videos", limit=2, **cursor)
        found += ids(answer)
        pages += 1
        if "nextCursor" not in answer.json():
            break
        cursor = {"cursor": answer.json()["nextCursor"]}
        site.writer.video("newcomer")
    assert found == [str(video.id) for video in reversed(first)]
    assert pages == 4


def test_an_exactly_full_page_is_the_last(site: Site) -> None:
    for _ in range(2):
        site.writer.video()
    assert "nextCursor" not in site.get("/videos", limit=2).json()
    assert "nextCursor" in site.get("/videos", limit=1).json()


def test_liked_videos_newest_like_first(site: Site) -> None:
    videos = [site.writer.video() for _ in range(5)]
    for n in (2, 0, 4, 1, 3):
        site.writer.like(videos[n].id, "bob")
    site.writer.unlike(videos[4].id, "bob")
    videos[1].remove(origin())
    site.writer.save(videos[1])
    first = site.get("/videos/liked", "bob", limit=2)
    assert ids(first) == [str(videos[3].id), str(videos[0].id)]
    site.writer.like(site.writer.video().id, "bob")
    rest = site.get("/videos/liked", "bob", limit=2, cursor=first.json()["nextCursor"])
    assert ids(rest) == [str(videos[2].id)]
    assert all(item["hasLiked"] for item in first.json()["items"])
    assert ids(site.get("/videos/liked", "eve")) == []
    assert problem(site.get("/videos/liked")) == (401, "unauthenticated")


def test_comments_newest_first(site: Site) -> None:
    video = site.writer.video()
    comments = [site.writer.comment(video.id, "bob", f"comment {n}") for n in range(3)]
    comments[1].edit("edited", origin("bob"))
    comments[1].detect_language(2, "en", 0.99, "lite", "en", origin("robot"))
    site.writer.save(comments[1])
    first = site.get(f"/videos/{video.id}/comments", limit=2)
    site.writer.comment(video.id)
    cursor = first.json()["nextCursor"]
    rest = site.get(f"/videos/{video.id}/comments", cursor=cursor)
    texts = [item["content"] for page in (first, rest) for item in page.json()["items"]]
    assert texts == ["comment 2", "edited", "comment 0"]
    item = first.json()["items"][1]
    assert item.pop("createdAt")
    assert item == {
        "commentId": str(comments[1].id),
        "videoId": str(video.id),
        "userId": "bob",
        "content": "edited",
        "language": "en",
        "confidence": 0.99,
        "translationStatus": "not_needed",
        "edited": True,
        "replyCount": 0,
        "likeCount": 0,
    }


async def chunks(data: bytes) -> Any:
    yield data


def test_an_upload_and_its_parts(site: Site) -> None:
    upload = Upload.blank(uuid4())
    key = f"videos/{upload.id}"
    store_upload_id = site.run(site.objects.begin(key))
    upload.start(
        origin("alice"),
        title="Rain",
        filename="rain.mp4",
        content_type="video/mp4",
        size_bytes=2500,
        description=None,
        category=None,
        part_size_bytes=1024,
        object_key=key,
        store_upload_id=store_upload_id,
    )
    site.writer.save(upload)
    part = site.run(site.objects.put_part(key, store_upload_id, 2, 1024, chunks(b"x" * 1024)))
    path = f"/uploads/{upload.id}"
    assert site.get(path, "alice").json() == {
        "uploadId": str(upload.id),
        "videoId": str(upload.id),
        "status": "started",
        "sizeBytes": 2500,
        "partSizeBytes": 1024,
        "partCount": 3,
        "parts": [{"number": 2, "etag": part.etag, "sizeBytes": 1024}],
    }
    assert site.get(path, "root", admin=True).status_code == 200
    assert problem(site.get(path, "bob")) == (403, "forbidden")
    assert problem(site.get(path)) == (401, "unauthenticated")
    assert problem(site.get(f"/uploads/{uuid4()}", "alice")) == (404, "not-found")
    # The store has dropped it, and the event of that is still to come.
    site.run(site.objects.abort(key, store_upload_id))
    assert site.get(path, "alice").json()["parts"] == []
    upload.abort(origin("alice"))
    site.writer.save(upload)
    assert site.get(path, "alice").json()["status"] == "aborted"


def test_an_object_store_that_is_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(key: str, store_upload_id: str) -> Any:
        raise ObjectStoreUnavailable("/secret/folder is gone")

    upload = site.writer.upload("alice")
    monkeypatch.setattr(site.objects, "list_parts", broken)
    answer = site.get(f"/uploads/{upload.id}", "alice")
    assert problem(answer) == (503, "object-store-unavailable")
    assert answer.headers["retry-after"]
    assert "secret" not in answer.text


def test_projections_for_operators(site: Site) -> None:
    video = site.writer.video()
    assert site.get(f"/videos/{video.id}").status_code == 200
    answer = site.get("/projections", "root", admin=True).json()["items"]
    assert [item["name"] for item in answer] == ["catalog", "comments", "likes"]
    versions = {"catalog": Catalog.version, "comments": Comments.version, "likes": Likes.version}
    for item in answer:
        version = versions[item["name"]]
        assert item.pop("updatedAt")
        assert item == {
            "name": item["name"],
            "version": version,
            "status": "running",
            "active": True,
            "position": site.writer.head,
            "lagEvents": 0,
            "lagSeconds": 0.0,
            "parked": 0,
            "copies": [
                {
                    "schema": item["name"],
                    "kind": "live",
                    "version": version,
                    "status": "running",
                    "position": site.writer.head,
                    "parked": 0,
                }
            ],
        }
    with psycopg.connect(site.database_url, autocommit=True) as operator:
        pause(operator, "likes")
    site.writer.like(video.id, "bob")
    rows(
        site.database_url,
        "UPDATE backlot_checkpoints SET version = 7 WHERE subscription = 'catalog' RETURNING 1",
    )
    likes = site.get("/projections/likes", "root", admin=True).json()
    assert (likes["status"], likes["lagEvents"]) == ("paused", 1)
    assert likes["lagSeconds"] > 0
    catalog = site.get("/projections/catalog", "root", admin=True).json()
    assert (catalog["status"], catalog["version"]) == ("outdated", 7)
    assert "replay" in catalog["error"]
    assert problem(site.get("/projections", "alice")) == (403, "forbidden")
    assert problem(site.get("/projections")) == (401, "unauthenticated")
    assert problem(site.get("/projections/nothing", "root", admin=True)) == (404, "not-found")


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/videos", {"limit": 0}),
        ("/videos", {"limit": 101}),
        ("/videos", {"limit": "many"}),
        ("/videos", {"cursor": "rubbish"}),
        ("/videos", {"cursor": ""}),
        ("/videos", {"cursor": "ä"}),
        ("/videos", {"cursor": "bGlrZWQ6NQ"}),  # that of another list
        ("/videos", {"cursor": "dmlkZW9zOi01"}),  # videos:-5
        ("/videos", {"cursor": "dmlkZW9zOjk5OTk5OTk5OTk5OTk5OTk5OTk5"}),  # beyond 64 bits
        ("/videos", {"cursor": "x" * 101}),
        ("/videos", {"owner": ""}),
        ("/videos", {"owner": "a\x00b"}),
        ("/videos", {"category": "\x00"}),
        ("/videos", {"category": "x" * 51}),
        ("/videos/liked", {"cursor": "dmlkZW9zOjU"}),
        ("/videos/rubbish", {}),
        ("/videos/rubbish/like", {}),
        ("/videos/rubbish/comments", {}),
        ("/uploads/rubbish", {}),
    ],
)
def test_rubbish_is_refused(site: Site, path: str, params: dict[str, Any]) -> None:
    before = value("backlot_http_requests_total", method="GET", route="/videos", status="500")
    answer = site.get(path, "alice", **params)
    assert problem(answer)[0] == 422, answer.text
    after = value("backlot_http_requests_total", method="GET", route="/videos", status="500")
    assert after == before

"""Replies, likes and orders of comments, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx

from tests.e2e import plain
from tests.e2e.live_events import Told, events
from tests.e2e.program import Program
from tests.e2e.videos import read, upload


def post(client: httpx.Client, video: str, content: str, parent: str | None = None) -> str:
    body = {"content": content} | ({} if parent is None else {"parentId": parent})
    told = read(client.post(f"/videos/{video}/comments", json=body))
    assert told.get("parentId") == parent, told
    return str(told["commentId"])


def listed(client: httpx.Client, path: str) -> list[tuple[Any, ...]]:
    """Content and counts of a list, read in pages of two."""
    found, cursor = [], ""
    while True:
        page = read(client.get(path + ("&" if "?" in path else "?") + f"limit=2{cursor}"))
        found += page["items"]
        if "nextCursor" not in page:
            names = ("content", "replyCount", "likeCount", "hasLiked")
            return [tuple(each.get(name) for name in names) for each in found]
        cursor = f"&cursor={page['nextCursor']}"


def test_comments_have_replies_and_likes(server: Program) -> None:
    owner, ann, bob, reader = (server.client(each) for each in ("olga", "anna", "berta", None))
    video, other = upload(owner), upload(owner)
    first, second, third = (post(ann, video, each) for each in ("first", "second", "third"))
    reply = post(bob, video, "a reply", first)
    # A reply to a reply belongs to the same comment.
    body = {"content": "another", "parentId": reply}
    assert read(ann.post(f"/videos/{video}/comments", json=body))["parentId"] == first
    elsewhere = ann.post(f"/videos/{other}/comments", json={**body, "parentId": first})
    assert (elsewhere.status_code, elsewhere.json()["type"]) == (404, "not-found")

    for client, number in ((ann, 1), (bob, 2), (bob, 2)):
        answer = read(client.put(f"/comments/{second}/like"))
        assert answer == {"hasLiked": True, "likesCount": number}
    assert read(owner.put(f"/comments/{reply}/like"))["likesCount"] == 1
    assert read(owner.delete(f"/comments/{first}/like")) == {"hasLiked": False, "likesCount": 0}
    assert read(reader.get(f"/comments/{second}/like")) == {"likesCount": 2}
    assert read(ann.get(f"/comments/{second}/like")) == {"hasLiked": True, "likesCount": 2}

    path = f"/videos/{video}/comments"
    newest = [("third", 0, 0, None), ("second", 0, 2, None), ("first", 2, 0, None)]
    assert listed(reader, path) == newest
    assert listed(reader, f"{path}?sort=newest") == newest
    assert listed(reader, f"{path}?sort=oldest") == newest[::-1]
    assert listed(reader, f"{path}?sort=top") == [newest[1], newest[0], newest[2]]
    assert [each[3] for each in listed(bob, path)] == [False, True, False]
    assert [each[3] for each in listed(bob, f"{path}?sort=top")] == [True, False, False]
    replies = f"/comments/{first}/replies"
    assert listed(reader, replies) == [("a reply", None, 1, None), ("another", None, 0, None)]
    assert read(reader.get(f"/videos/{video}"))["comments"] == 5
    one = read(owner.get(f"/comments/{reply}"))
    assert (one["parentId"], one["likeCount"], one["hasLiked"]) == (first, 1, True)
    assert reader.get(path, params={"sort": "worst"}).status_code == 422

    # While a comment is away, so are the replies to it.
    assert owner.delete(f"/comments/{first}").json()["status"] == "removed"
    assert read(reader.get(f"/videos/{video}"))["comments"] == 2
    for gone in (f"/comments/{reply}", replies, f"/comments/{reply}/like", f"/comments/{first}"):
        assert reader.get(gone).status_code == 404, gone
    assert bob.put(f"/comments/{reply}/like").status_code == 404
    assert bob.post(path, json={**body, "parentId": first}).status_code == 404
    assert read(ann.get(f"/comments/{first}"))["status"] == "removed"
    assert "likeCount" not in read(owner.get(f"/comments/{first}"))
    read(owner.post(f"/comments/{first}/restore"))
    assert listed(reader, replies) == [("a reply", None, 1, None), ("another", None, 0, None)]
    assert read(reader.get(f"/videos/{video}"))["comments"] == 5
    assert listed(reader, path)[-1][0] == "first"
    assert third != second


def test_what_is_private_is_not_told_of(server: Program) -> None:
    owner, eve = server.client("olga"), server.client("eve")
    video = upload(owner, visibility="private")
    comment = post(owner, video, "mine")
    unknown = "5f0c2f0a-7f0e-4a3c-9a39-1c6a54f2b7aa"
    for path in ("", "/replies", "/like"):
        assert owner.get(f"/comments/{comment}{path}").status_code == 200
        told = [eve.get(f"/comments/{each}{path}") for each in (comment, unknown)]
        assert [each.status_code for each in told] == [404, 404]
        assert told[0].json()["detail"] == told[1].json()["detail"]
    for method, path, body in (
        ("PUT", "/like", None),
        ("DELETE", "/like", None),
        ("PATCH", "", {"content": "hers"}),
        ("DELETE", "", None),
        ("POST", "/report", {"reason": "spam"}),
        ("POST", "/approve", None),
        ("POST", "/restore", None),
    ):
        told = [
            eve.request(method, f"/comments/{each}{path}", json=body) for each in (comment, unknown)
        ]
        assert [(each.status_code, each.json()["detail"]) for each in told] == [
            (404, "There is no such comment.")
        ] * 2, (method, path)


def test_a_reply_to_who_blocks_its_author_is_held(server: Program) -> None:
    owner, hilda, ivo = server.client("olga"), server.client("hilda"), server.client("ivo")
    video = upload(owner)
    first, second = post(hilda, video, "mine"), post(owner, video, "another")
    assert hilda.put("/users/me/blocked/ivo").status_code == 200
    told = [
        read(ivo.post(f"/videos/{video}/comments", json={"content": "hers", "parentId": each}))
        for each in (first, second)
    ]
    assert [each.get("status") for each in told] == ["held", None]


def follow(told: Iterator[Told], comment: str, counts: tuple[int, int], *others: Any) -> None:
    """Read until the comment was told with these likes and replies, and each of the other events.

    What happens to a comment meanwhile, like that its language is found, comes as one event.
    """
    wanted = {(comment, counts), *others}
    while wanted:
        each = next(told)
        about = each.data.get("commentId")
        wanted -= {(about, (each.data.get("likeCount"), each.data.get("replyCount")))}
        wanted -= {(each.kind, about)}


def test_who_watches_is_told_of_replies_and_counts(server: Program) -> None:
    owner, ann = server.client("olga"), server.client("anna")
    video = upload(owner)
    comment = post(ann, video, "first")
    path = f"/videos/{video}/events"
    with plain.client(base_url=server.url) as page, page.stream("GET", path) as stream:
        told = events(stream.iter_lines())
        begun = next(told)
        read(owner.put(f"/comments/{comment}/like"))
        follow(told, comment, (1, 0))
        reply = post(owner, video, "a reply", comment)
        follow(told, comment, (1, 1), ("reply", reply))
        assert owner.delete(f"/comments/{reply}").is_success
        follow(told, comment, (1, 0), ("comment-removed", reply))
    # Who comes back is told of it, too.
    headers = {"Last-Event-ID": begun.id}
    with (
        plain.client(base_url=server.url, headers=headers) as page,
        page.stream("GET", path) as stream,
    ):
        missed = events(stream.iter_lines())
        follow(missed, comment, (1, 0), ("comment-removed", reply))

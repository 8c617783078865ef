"""What a newcomer does: a film goes in, people like it and talk about it, and it comes back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e import plain
from tests.e2e.program import Program
from tests.e2e.videos import (
    MP4,
    everything,
    pieces,
    problem,
    read,
    see,
    send_parts,
    start,
    upload,
)
from tests.support import PROJECT, requires


def test_a_film_goes_in_by_parts_and_comes_out_the_same(alice: httpx.Client) -> None:
    started = start(alice)
    upload_id = started["uploadId"]
    assert started["status"] == "started"
    assert started["partCount"] == len(started["parts"]) == 3
    parts = send_parts(started)

    status = read(alice.get(f"/uploads/{upload_id}"))
    assert [part["number"] for part in status["parts"]] == [1, 2, 3]
    assert sum(part["sizeBytes"] for part in status["parts"]) == status["sizeBytes"] == len(MP4)

    completed = alice.post(f"/uploads/{upload_id}/complete", json={"parts": parts})
    assert read(completed)["status"] == "completed"
    see(alice, completed)
    watched = read(alice.post(f"/videos/{completed.json()['videoId']}/watch"))
    assert plain.get(watched["url"]).content == MP4


def test_an_upload_is_resumed_from_what_has_arrived(alice: httpx.Client) -> None:
    started = start(alice)
    path = f"/uploads/{started['uploadId']}"
    middle = pieces(MP4, started)[1]
    plain.put(started["parts"][1]["url"], content=middle).raise_for_status()
    assert [part["number"] for part in read(alice.get(path))["parts"]] == [2]
    early = problem(alice.post(f"{path}/complete"), 422, "parts-mismatch")
    assert early["missing"] == [1, 3]

    again = read(alice.post(f"{path}/part-urls", json={"numbers": [1, 3]}))
    for part in again["parts"]:
        piece = pieces(MP4, started)[part["number"] - 1]
        plain.put(part["url"], content=piece).raise_for_status()
    first = read(alice.post(f"{path}/complete"))
    assert first == read(alice.post(f"{path}/complete"))


def test_an_aborted_upload_takes_no_more_parts(alice: httpx.Client) -> None:
    started = start(alice)
    path = f"/uploads/{started['uploadId']}"
    aborted = alice.delete(path)
    assert read(aborted) == {"status": "aborted"}
    see(alice, aborted)
    assert read(alice.get(path))["status"] == "aborted"
    late = plain.put(started["parts"][0]["url"], content=pieces(MP4, started)[0])
    problem(late, 404, "upload-gone")
    conflict = problem(alice.post(f"{path}/complete"), 409, "conflict")
    assert conflict["uploadStatus"] == "aborted"


def test_the_watch_url_plays_by_ranges(alice: httpx.Client, video: str) -> None:
    url = read(alice.post(f"/videos/{video}/watch"))["url"]
    with plain.client() as player:
        whole = player.get(url)
        assert (whole.status_code, whole.headers["Content-Type"]) == (200, "video/mp4")
        assert whole.content == MP4
        for asked, first, last in (
            ("bytes=0-99", 0, 99),
            ("bytes=1000-", 1000, len(MP4) - 1),
            ("bytes=-64", len(MP4) - 64, len(MP4) - 1),
        ):
            part = player.get(url, headers={"Range": asked})
            assert part.status_code == 206
            assert part.headers["Content-Range"] == f"bytes {first}-{last}/{len(MP4)}"
            assert part.content == MP4[first : last + 1]
        beyond = player.get(url, headers={"Range": f"bytes={len(MP4)}-"})
        problem(beyond, 416)


def test_what_plays_is_a_real_film(alice: httpx.Client, video: str, tmp_path: Path) -> None:
    probe = requires("ffmpeg").replace("ffmpeg", "ffprobe")
    assert shutil.which(probe), "ffprobe comes with ffmpeg"
    url = read(alice.post(f"/videos/{video}/watch"))["url"]
    command = [probe, "-v", "error", "-of", "json", "-show_streams", "-show_format", url]
    told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert [stream["codec_name"] for stream in told["streams"]] == ["h264", "aac"]
    assert float(told["format"]["duration"]) == pytest.approx(4, abs=0.2)


def test_likes_are_seen_by_who_gave_them_and_counted_for_all(
    alice: httpx.Client, bob: httpx.Client, nobody: httpx.Client, video: str
) -> None:
    path = f"/videos/{video}/like"
    assert read(alice.put(path)) == {"hasLiked": True, "likesCount": 1}
    assert read(alice.put(path)) == {"hasLiked": True, "likesCount": 1}
    liked = bob.post(path)
    assert read(liked) == {"hasLiked": True, "likesCount": 2}
    for client, has_liked in ((alice, True), (bob, True)):
        see(client, liked)
        assert read(client.get(path)) == {"hasLiked": has_liked, "likesCount": 2}
    see(nobody, liked)
    assert read(nobody.get(path)) == {"likesCount": 2}

    unliked = bob.post(path)
    assert read(unliked) == {"hasLiked": False, "likesCount": 1}
    see(bob, unliked)
    assert read(bob.get(path)) == {"hasLiked": False, "likesCount": 1}
    assert read(bob.delete(path)) == {"hasLiked": False, "likesCount": 1}


def test_the_liked_list_is_the_viewers_own_newest_first(server: Program) -> None:
    viewer = server.client("list-viewer")
    videos = [upload(viewer, title=f"Number {number}") for number in range(3)]
    for video in (videos[1], videos[2], videos[0]):
        see(viewer, viewer.put(f"/videos/{video}/like"))
    liked = everything(viewer, "/videos/liked", limit=2)
    assert [item["videoId"] for item in liked] == [videos[0], videos[2], videos[1]]
    assert all(item["hasLiked"] for item in liked)
    see(viewer, viewer.delete(f"/videos/{videos[2]}/like"))
    assert [item["title"] for item in everything(viewer, "/videos/liked")] == [
        "Number 0",
        "Number 1",
    ]


def test_comments_are_written_edited_deleted_and_listed(
    alice: httpx.Client, bob: httpx.Client, video: str
) -> None:
    path = f"/videos/{video}/comments"
    texts = ["¡Qué bonito!", "素敵な色ですね 🎬", "   spaces stay   ", "רגע אחד"]
    posted = [bob.post(path, json={"content": text}) for text in texts]
    ids = [answer.json()["commentId"] for answer in posted]
    assert [answer.status_code for answer in posted] == [201] * 4

    edited = bob.patch(f"/comments/{ids[1]}", json={"content": "もっと好きになりました"})
    assert read(edited)["edited"]
    deleted = bob.delete(f"/comments/{ids[0]}")
    assert read(deleted) == {"commentId": ids[0], "status": "deleted"}
    see(alice, deleted)
    seen = everything(alice, path, limit=2)
    assert [(item["commentId"], item["content"], item["edited"]) for item in seen] == [
        (ids[3], texts[3], False),
        (ids[2], texts[2], False),
        (ids[1], "もっと好きになりました", True),
    ]
    assert {item["userId"] for item in seen} == {"bob"}
    assert read(alice.get(f"/videos/{video}"))["comments"] == 3
    problem(alice.patch(f"/comments/{ids[1]}", json={"content": "mine"}), 403, "forbidden")
    problem(bob.delete(f"/comments/{ids[0]}"), 404)


def test_views_are_counted_and_watch_time_and_shares_are_taken(
    alice: httpx.Client, bob: httpx.Client, video: str
) -> None:
    watching = [alice, bob, alice, bob, alice]
    sessions = {read(each.post(f"/videos/{video}/watch"))["sessionId"] for each in watching}
    assert len(sessions) == 2
    told = {"sessionId": sessions.pop(), "seconds": 12.5}
    for path, body in (("watch-time", told), ("share", {"channel": "mail"}), ("share", None)):
        answer = alice.post(f"/videos/{video}/{path}", json=body)
        assert (answer.status_code, answer.json()) == (202, {"status": "accepted"})
    assert read(alice.get(f"/videos/{video}"))["views"] == 2


def test_a_video_is_described_anew_and_found_by_owner_and_category(server: Program) -> None:
    owner, category = server.client("describer"), "unheard-of"
    video = upload(owner, title="First", description="Words.", category="other")
    changed = owner.patch(
        f"/videos/{video}", json={"title": "Second", "description": None, "category": category}
    )
    assert read(changed)["title"] == "Second"
    assert "description" not in changed.json()
    see(owner, changed)
    for params in ({"owner": "describer"}, {"category": category}):
        items = read(owner.get("/videos", params=params))["items"]
        assert [(item["videoId"], item["title"]) for item in items] == [(video, "Second")]


def test_a_removed_video_is_gone_everywhere(alice: httpx.Client, bob: httpx.Client) -> None:
    video = upload(alice)
    see(bob, bob.put(f"/videos/{video}/like"))
    comment = bob.post(f"/videos/{video}/comments", json={"content": "soon gone"}).json()
    play = read(bob.post(f"/videos/{video}/watch"))["url"]

    problem(bob.delete(f"/videos/{video}"), 403)
    removed = alice.delete(f"/videos/{video}")
    assert read(removed) == {"videoId": video, "status": "removed"}
    for client in (alice, bob):
        see(client, removed)
    for path in ("", "/like", "/comments"):
        problem(bob.get(f"/videos/{video}{path}"), 404)
    for method, path in (
        ("POST", "/like"),
        ("PUT", "/like"),
        ("DELETE", "/like"),
        ("POST", "/watch"),
        ("POST", "/share"),
    ):
        problem(bob.request(method, f"/videos/{video}{path}"), 404)
    problem(bob.post(f"/videos/{video}/comments", json={"content": "too late"}), 404)
    problem(alice.patch(f"/videos/{video}", json={"title": "too late"}), 404)
    problem(alice.delete(f"/videos/{video}"), 404)
    problem(alice.get(f"/uploads/{video}"), 404)
    problem(plain.get(play), 404)
    listed = everything(bob, "/videos") + everything(bob, "/videos/liked")
    assert video not in [item["videoId"] for item in listed]
    assert comment["videoId"] == video


def test_the_program_under_test_is_this_source(server: Program) -> None:
    code = "import backlot; print(backlot.__file__)"
    told = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=server.home,
        env=server.environment(),
    )
    assert Path(told.stdout.strip()) == PROJECT / "backlot" / "__init__.py"

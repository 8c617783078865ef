"""Every call about a video, by everybody: a private one is not there for who may not see it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.e2e import plain
from tests.e2e.conftest import SMALL_PARTS
from tests.e2e.program import Program
from tests.e2e.videos import MP4, problem, read, see, start, upload
from tests.routes import TUS_BYTES
from tests.support import eventually, unused_port

# Who calls, in the order of the tables: the video's owner last.
CALLERS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "nobody": (None, ()),
    "other": ("bob", ()),
    "auditor": ("audrey", ("auditor", "service")),
    "moderator": ("mod", ("moderator",)),
    "admin": ("root", ("admin",)),
    "owner": ("alice", ()),
}
# What each of them is answered: about a video that is public or unlisted, and about a private one.
EVERYBODY = ("200 200 200 200 200 200", "404 404 404 200 200 200")
ACCEPTED = ("202 202 202 202 202 202", "404 404 404 202 202 202")
A_USER = ("401 200 200 200 200 200", "401 404 404 200 200 200")
ITS_OWNER = ("401 403 403 403 200 200", "401 404 404 403 200 200")
ITS_UPLOADER = ("401 403 403 403 403 {}", "401 404 404 404 404 {}")
CALLS: dict[str, tuple[str, str]] = {
    "GET /videos/{video_id}": EVERYBODY,
    "GET /videos/{video_id}/like": EVERYBODY,
    "GET /videos/{video_id}/comments": EVERYBODY,
    "GET /videos/{video_id}/events": EVERYBODY,
    "GET /videos/{video_id}/stats": ("401 403 200 200 200 200", "404 404 404 200 200 200"),
    "POST /videos/{video_id}/events/ticket": A_USER,
    "GET /videos/{video_id}/stats/channels": (
        "401 403 200 200 200 200",
        "404 404 404 200 200 200",
    ),
    "GET /videos/{video_id}/stats/retention": (
        "401 403 200 200 200 200",
        "404 404 404 200 200 200",
    ),
    "POST /videos/{video_id}/watch": EVERYBODY,
    "POST /videos/{video_id}/watch-time": ACCEPTED,
    "POST /videos/{video_id}/share": ACCEPTED,
    "POST /videos/{video_id}/like": A_USER,
    "PUT /videos/{video_id}/like": A_USER,
    "DELETE /videos/{video_id}/like": A_USER,
    "POST /videos/{video_id}/comments": (
        "401 201 201 201 201 201",
        "401 404 404 201 201 201",
    ),
    "POST /videos/{video_id}/report": ("401 202 202 202 202 202", "401 404 404 202 202 202"),
    "PUT /videos/{video_id}/not-interested": A_USER,
    "DELETE /videos/{video_id}/not-interested": A_USER,
    "PATCH /videos/{video_id}": ITS_OWNER,
    "DELETE /videos/{video_id}": ITS_OWNER,
    "GET /uploads/{upload_id}": ITS_OWNER,
    "POST /uploads/{upload_id}/part-urls": (
        ITS_UPLOADER[0].format(409),
        ITS_UPLOADER[1].format(409),
    ),
    "POST /uploads/{upload_id}/complete": (
        ITS_UPLOADER[0].format(200),
        ITS_UPLOADER[1].format(200),
    ),
    "GET /uploads/{upload_id}/s3": ITS_OWNER,
    "POST /uploads/{upload_id}/s3": (ITS_UPLOADER[0].format(200), ITS_UPLOADER[1].format(200)),
    "DELETE /uploads/{upload_id}/s3": (ITS_UPLOADER[0].format(409), ITS_UPLOADER[1].format(409)),
    "GET /tus/uploads/{upload_id}": (ITS_UPLOADER[0].format(200), ITS_UPLOADER[1].format(200)),
    "PATCH /tus/uploads/{upload_id}": (ITS_UPLOADER[0].format(409), ITS_UPLOADER[1].format(409)),
    "DELETE /tus/uploads/{upload_id}": (ITS_UPLOADER[0].format(409), ITS_UPLOADER[1].format(409)),
    "DELETE /uploads/{upload_id}": (ITS_UPLOADER[0].format(409), ITS_UPLOADER[1].format(409)),
}
BODIES: dict[str, dict[str, Any]] = {
    "POST /videos/{video_id}/watch-time": {"sessionId": str(uuid4()), "seconds": 1.5},
    "POST /videos/{video_id}/share": {"channel": "mail"},
    "POST /videos/{video_id}/comments": {"content": "¡Qué bonito!"},
    "POST /videos/{video_id}/report": {"reason": "spam"},
    "PATCH /videos/{video_id}": {"description": "Filmed in one take."},
    "POST /uploads/{upload_id}/part-urls": {"numbers": [1]},
}
VISIBILITIES = ("public", "unlisted", "private")
Videos = dict[str, str]


@pytest.fixture(scope="module")
def server(short_dir: Path) -> Iterator[Program]:
    """A program in which nobody in particular may watch."""
    variables = {**SMALL_PARTS, "ANONYMOUS_VIEWERS": "true"}
    program = Program(short_dir / "visibility", unused_port(), variables)
    try:
        yield program.start()
        assert program.stop() == 0
        assert "request_broke" not in program.complained
    finally:
        program.clean_up()


@pytest.fixture(scope="module")
def videos(server: Program) -> Videos:
    """A video of Alice's of each visibility."""
    alice = server.client("alice")
    return {each: upload(alice, visibility=each) for each in VISIBILITIES}


def caller(server: Program, name: str, told: httpx.Client | None = None) -> httpx.Client:
    """The client of a caller; its queries see what another client was told."""
    user, roles = CALLERS[name]
    client = server.client(user, roles=roles)
    client.headers["Backlot-Timeout-Ms"] = "20000"
    if told is not None:
        client.headers["Backlot-Min-Position"] = told.headers["Backlot-Min-Position"]
    return client


def call(client: httpx.Client, name: str, video: str) -> httpx.Response:
    """The answer; of a stream its head."""
    method, _, path = name.partition(" ")
    url = re.sub(r"\{\w+_id\}", video, path)
    tus = {"content": b"0", "headers": TUS_BYTES} if "/tus/" in path else {}
    given: dict[str, Any] = tus or {"json": BODIES.get(name)}
    with client.stream(method, url, **given) as answer:
        if "text/event-stream" not in answer.headers.get("Content-Type", ""):
            answer.read()
        return answer


def test_the_tables_have_every_call_about_a_video(server: Program) -> None:
    paths = plain.get(f"{server.url}/openapi.json").json()["paths"]
    about = {
        f"{method.upper()} {path}"
        for path, methods in paths.items()
        for method in methods
        if "{video_id}" in path or "{upload_id}" in path
    }
    assert about == set(CALLS), "say in CALLS who may do it"


@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("name", CALLS)
def test_who_may_do_what(server: Program, videos: Videos, name: str, visibility: str) -> None:
    video, expected = videos[visibility], CALLS[name][visibility == "private"].split()
    for who, right in zip(CALLERS, expected, strict=True):
        client = caller(server, who)
        if name == "DELETE /videos/{video_id}" and right == "200":
            # A video can be removed once.
            video = upload(server.client("alice"), visibility=visibility)
        answer = call(client, name, video)
        assert str(answer.status_code) == right, f"{who}: {answer.text}"
        if right == "404":
            # No word tells it from a video that never was.
            never = problem(call(client, name, str(uuid4())), 404, "not-found")
            told = problem(answer, 404, "not-found")
            assert told | {"requestId": ""} == never | {"requestId": ""}


def test_a_change_holds_for_whoever_asks_next(server: Program) -> None:
    alice = server.client("alice")
    video = upload(alice)
    path = f"/videos/{video}"
    for visibility, status in (("private", 404), ("unlisted", 200), ("private", 404)):
        changed = alice.patch(path, json={"visibility": visibility})
        assert read(changed)["visibility"] == visibility
        # Commands decide on the log itself; they wait for no read model.
        for who in ("nobody", "other"):
            assert caller(server, who).post(f"{path}/watch").status_code == status
        assert caller(server, "other").put(f"{path}/like").status_code == status
        see(alice, changed)
        for who in ("nobody", "other"):
            for part in ("", "/like", "/comments"):
                assert caller(server, who, alice).get(path + part).status_code == status
        assert read(alice.get(path))["visibility"] == visibility
    problem(caller(server, "other").patch(path, json={"visibility": "public"}), 404)
    problem(alice.patch(path, json={"visibility": "hidden"}), 422, "invalid")


def test_a_private_upload_is_private_from_its_first_part_on(server: Program) -> None:
    alice, bob = server.client("alice"), server.client("bob")
    started = start(alice, visibility="private")
    path = f"/uploads/{started['uploadId']}"
    for method, call_path, body in (
        ("GET", path, None),
        ("POST", f"{path}/part-urls", {"numbers": [1]}),
        ("POST", f"{path}/complete", None),
        ("DELETE", path, None),
    ):
        problem(bob.request(method, call_path, json=body), 404, "not-found")
    assert read(alice.get(path))["status"] == "started"


def test_a_repeated_command_tells_nothing_of_a_video_that_became_private(server: Program) -> None:
    alice, bob = server.client("alice"), server.client("bob")
    video = upload(alice)
    key = {"Idempotency-Key": str(uuid4())}
    url = read(bob.post(f"/videos/{video}/watch", headers=key))["url"]
    assert plain.get(url).content == MP4
    assert alice.patch(f"/videos/{video}", json={"visibility": "private"}).is_success
    problem(bob.post(f"/videos/{video}/watch", headers=key), 404, "not-found")
    assert plain.get(read(alice.post(f"/videos/{video}/watch"))["url"]).content == MP4


def test_feedback_on_what_became_private_is_not_taken(server: Program) -> None:
    owner, ann = server.client("carl"), server.client("ann")
    video, other = upload(owner), upload(owner)
    for name in ("Backlot-Min-Position", "Backlot-Timeout-Ms"):
        ann.headers[name] = owner.headers[name]

    def given() -> str | None:
        found = read(ann.get("/recommendations", params={"limit": 50}))
        shown = {item["video"]["videoId"] for item in found["items"]}
        return str(found["listId"]) if {video, other} <= shown else None

    path = f"/recommendations/{eventually(given)}"
    assert owner.patch(f"/videos/{video}", json={"visibility": "private"}).is_success
    for answer in (
        ann.post(f"{path}/chosen", json={"videoId": video}),
        ann.post(f"{path}/shown", json={"videoIds": [video]}),
        ann.post("/recommendations/not-interested", json={"videoId": video}),
        ann.post(f"/videos/{video}/watch", json={"listId": path.rpartition("/")[2]}),
    ):
        problem(answer, 404, "not-found")
    # Whatever else was seen counts.
    assert ann.post(f"{path}/shown", json={"videoIds": [video, other]}).status_code == 202


def next_data(lines: Iterator[str]) -> str:
    found = next(line for line in lines if line.startswith("data: "))
    return found.removeprefix("data: ")


def test_an_open_stream_ends_when_the_video_becomes_private(server: Program) -> None:
    alice = server.client("alice")
    video = upload(alice)
    with (
        caller(server, "other").stream("GET", f"/videos/{video}/events") as stream,
        alice.stream("GET", f"/videos/{video}/events") as own,
    ):
        lines, mine = stream.iter_lines(), own.iter_lines()
        assert [next_data(told) for told in (lines, mine)] == ['{"likesCount":0}'] * 2
        assert alice.patch(f"/videos/{video}", json={"visibility": "private"}).is_success
        told = [line for line in lines if line.startswith(("event", "data"))]
        assert told == ["event: removed", f'data: {{"videoId":"{video}"}}']
        # Its owner goes on.
        assert alice.put(f"/videos/{video}/like").is_success
        assert next_data(mine) == '{"likesCount":1}'
    assert caller(server, "nobody").get(f"/videos/{video}/events").status_code == 404


def test_no_comment_on_a_private_video_can_be_edited_by_who_may_not_see_it(
    server: Program,
) -> None:
    alice, bob = server.client("alice"), server.client("bob")
    video = upload(alice)
    posted = read(bob.post(f"/videos/{video}/comments", json={"content": "Nice"}))
    path = f"/comments/{posted['commentId']}"
    assert alice.patch(f"/videos/{video}", json={"visibility": "private"}).is_success
    problem(bob.patch(path, json={"content": "Not so nice"}), 404, "not-found")
    assert alice.patch(f"/videos/{video}", json={"visibility": "unlisted"}).is_success
    assert read(bob.patch(path, json={"content": "Very nice"}))["content"] == "Very nice"

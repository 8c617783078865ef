"""The protocol tus 1.0 over HTTP: what each request is answered, and that no byte is lost."""

from __future__ import annotations

import base64
import hashlib
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest

from commands.tus import MOST_BODIES_OF_ONE
from tests.e2e import plain
from tests.e2e.conftest import SMALL_PARTS
from tests.e2e.program import Program
from tests.e2e.videos import MP4, problem, read, see, start
from tests.support import eventually

PART = 16 * 1024
FILM = bytes(range(256)) * (PART // 64) + b"and a last part"
VERSION = {"Tus-Resumable": "1.0.0"}
BYTES = {"Content-Type": "application/offset+octet-stream"}


def encoded(**metadata: str) -> str:
    pairs = ((name, base64.b64encode(text.encode()).decode()) for name, text in metadata.items())
    return ",".join(f"{name} {text}" for name, text in pairs)


RAIN = encoded(filename="rain ☔.mp4", filetype="video/mp4", title="Regen")


@pytest.fixture
def tus(server: Program) -> httpx.Client:
    client = server.client("alice")
    client.headers.update(VERSION)
    return client


def create(tus: httpx.Client, content: bytes = FILM, metadata: str = RAIN, **more: Any) -> str:
    """The URL of an upload that is begun."""
    headers = {"Upload-Length": str(len(content)), "Upload-Metadata": metadata}
    answer = tus.post("/tus/uploads", headers=headers, **more)
    assert answer.status_code == 201, answer.text
    assert answer.headers["Location"].endswith(f"/tus/uploads/{answer.json()['uploadId']}")
    return str(answer.headers["Location"])


def patch(tus: httpx.Client, url: str, at: int, content: Any, **headers: str) -> httpx.Response:
    sent = {"Upload-Offset": str(at), **BYTES}
    sent |= {name.replace("_", "-"): text for name, text in headers.items()}
    return tus.patch(url, content=content, headers=sent)


def offset(tus: httpx.Client, url: str) -> int:
    answer = tus.head(url)
    assert answer.status_code == 200
    assert answer.headers["Tus-Resumable"] == "1.0.0"
    assert answer.headers["Cache-Control"] == "no-store"
    return int(answer.headers["Upload-Offset"])


def played(tus: httpx.Client, url: str, answer: httpx.Response) -> bytes:
    see(tus, answer)
    video = url.rpartition("/")[2]
    read(tus.get(f"/videos/{video}"))
    return plain.get(read(tus.post(f"/videos/{video}/watch"))["url"]).content


def test_what_the_server_can_is_told_to_anybody(server: Program) -> None:
    answer = server.client().options("/tus/uploads")
    assert answer.status_code == 204
    told = answer.headers
    assert (told["Tus-Resumable"], told["Tus-Version"]) == ("1.0.0", "1.0.0")
    expected = {"creation", "creation-with-upload", "expiration", "checksum", "termination"}
    assert set(told["Tus-Extension"].split(",")) == expected
    assert {"sha1", "sha256"} <= set(told["Tus-Checksum-Algorithm"].split(","))
    assert told["Tus-Max-Size"] == str(10_000 * PART)


def test_a_post_may_stand_for_any_method_here_and_nowhere_else(tus: httpx.Client) -> None:
    url = create(tus)

    def posted(method: str, path: str = url, **headers: str) -> httpx.Response:
        content = FILM[:10] if method == "PATCH" else b""
        sent = {"X-HTTP-Method-Override": method, **headers}
        return tus.post(path, headers=sent, content=content)

    assert posted("PATCH", **{"Upload-Offset": "0"}, **BYTES).status_code == 204
    told = posted("HEAD")
    assert (told.status_code, told.headers["Upload-Offset"], told.content) == (200, "10", b"")
    assert posted("BREW").status_code == 405
    own = url.replace("/tus/", "/")
    assert posted("DELETE", own).status_code == 405
    assert posted("DELETE").status_code == 204
    assert tus.head(url).status_code == 404


@pytest.mark.parametrize("step", [PART // 3, PART, 2 * PART + 5, len(FILM)])
def test_a_film_arrives_in_requests_of_any_size(tus: httpx.Client, step: int) -> None:
    url, answers = create(tus), []
    for at in range(0, len(FILM), step):
        assert offset(tus, url) == at
        answers.append(patch(tus, url, at, FILM[at : at + step]))
        assert answers[-1].status_code == 204, answers[-1].text
        assert answers[-1].headers["Upload-Offset"] == str(min(at + step, len(FILM)))
    assert played(tus, url, answers[-1]) == FILM
    assert offset(tus, url) == len(FILM)
    # A repeat of the last request, whose answer was lost, changes nothing.
    assert patch(tus, url, len(FILM), b"").status_code == 204
    video = read(tus.get(f"/videos/{url.rpartition('/')[2]}"))
    assert video["title"] == "Regen"


def test_many_small_requests_are_kept_as_few_fragments(tus: httpx.Client, server: Program) -> None:
    url, content = create(tus, FILM[: PART + 1]), FILM[:40]
    for at in range(len(content)):
        assert patch(tus, url, at, content[at : at + 1]).status_code == 204
    folder = server.data / "objects" / "fragments" / url.rpartition("/")[2]
    assert 0 < len(list(folder.iterdir())) <= 33
    answer = patch(tus, url, 40, FILM[40 : PART + 1])
    assert answer is not None
    assert played(tus, url, answer) == FILM[: PART + 1]
    assert not folder.exists()


def test_what_is_known_of_an_upload_comes_back(tus: httpx.Client) -> None:
    url = create(tus)
    told = tus.head(url).headers
    assert (told["Upload-Length"], told["Upload-Metadata"]) == (str(len(FILM)), RAIN)
    expires = parsedate_to_datetime(told["Upload-Expires"])
    assert timedelta(days=6) < expires - datetime.now(UTC) <= timedelta(days=7)
    assert "Upload-Expires" in patch(tus, url, 0, FILM[:10]).headers
    # The same upload is there for whoever looks in the other way.
    status = read(tus.get(f"/uploads/{url.rpartition('/')[2]}"))
    assert (status["status"], status["partSizeBytes"]) == ("started", PART)


def test_bytes_may_come_with_the_creation(tus: httpx.Client) -> None:
    key = {"Idempotency-Key": str(uuid4()), "Upload-Length": str(len(FILM))}
    headers = {**key, **BYTES, "Upload-Metadata": RAIN}
    first = tus.post("/tus/uploads", content=FILM[:PART], headers=headers)
    assert (first.status_code, first.headers["Upload-Offset"]) == (201, str(PART))
    again = tus.post("/tus/uploads", content=FILM[:PART], headers=headers)
    assert again.headers["Location"] == first.headers["Location"]
    assert (again.status_code, again.headers["Upload-Offset"]) == (201, str(PART))
    problem(tus.post("/tus/uploads", headers={**headers, "Upload-Length": "7"}), 409)
    whole = tus.post("/tus/uploads", content=FILM, headers={**headers, "Idempotency-Key": "w"})
    assert played(tus, whole.headers["Location"], whole) == FILM


def test_an_upload_that_was_begun_otherwise_goes_on_by_tus(tus: httpx.Client) -> None:
    started = start(tus)
    assert plain.put(started["parts"][0]["url"], content=MP4[:PART]).status_code == 200
    url = f"/tus/uploads/{started['uploadId']}"
    assert offset(tus, url) == PART
    assert played(tus, url, patch(tus, url, PART, MP4[PART:])) == MP4


def digest(algorithm: str, content: bytes) -> str:
    found = hashlib.new(algorithm, content).digest()
    return f"{algorithm} {base64.b64encode(found).decode()}"


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "md5"])
def test_bytes_are_held_against_their_checksum(tus: httpx.Client, algorithm: str) -> None:
    url = create(tus)
    assert patch(tus, url, 0, FILM[:10]).status_code == 204
    # As many as a part has, across the end of one.
    sent = FILM[10 : 10 + PART]
    wrong = digest(algorithm, b"other")
    problem(patch(tus, url, 10, sent, Upload_Checksum=wrong), 460, "checksum-mismatch")
    assert offset(tus, url) == 10
    right = digest(algorithm, sent)
    assert patch(tus, url, 10, sent, Upload_Checksum=right).status_code == 204
    assert offset(tus, url) == 10 + PART
    problem(patch(tus, url, 10 + PART, FILM[10 + PART :], Upload_Checksum=right), 413)
    assert played(tus, url, patch(tus, url, 10 + PART, FILM[10 + PART :])) == FILM


SHORT = {"Upload-Length": "10", "Upload-Metadata": RAIN}


@pytest.mark.parametrize(
    ("headers", "status", "slug"),
    [
        ({"Tus-Resumable": "0.2.2"}, 412, "precondition-failed"),
        ({"Upload-Length": "-1"}, 400, "unreadable"),
        ({"Upload-Length": "ten"}, 400, "unreadable"),
        ({"Upload-Length": "0"}, 422, "invalid"),
        ({"Upload-Length": str(10_000 * PART + 1)}, 413, "too-large"),
        ({"Upload-Metadata": "filename r%in"}, 400, "unreadable"),
        ({"Upload-Metadata": "filename /w=="}, 400, "unreadable"),
        ({"Upload-Metadata": encoded(filename="a.mp4")}, 422, "invalid"),
        ({"Upload-Metadata": encoded(filetype="text/html")}, 422, "invalid"),
        ({"Upload-Metadata": encoded(filetype="video/mp4", visibility="all")}, 422, "invalid"),
        ({"Authorization": "Bearer no"}, 401, "unauthenticated"),
    ],
)
def test_a_creation_that_is_wrong(
    tus: httpx.Client, headers: dict[str, str], status: int, slug: str
) -> None:
    answer = tus.post("/tus/uploads", headers={**SHORT, **headers})
    problem(answer, status, slug)
    assert answer.headers["Tus-Resumable"] == "1.0.0"
    assert ("Tus-Version" in answer.headers) == (status == 412)


@pytest.mark.parametrize(
    ("at", "content", "headers", "status"),
    [
        (0, b"x", {"Tus_Resumable": "2.0.0"}, 412),
        (1, b"x", {}, 409),
        (0, b"x", {"Upload_Offset": "0.5"}, 400),
        (0, b"x", {"Content_Type": "video/mp4"}, 415),
        (0, b"x" * 11, {}, 413),
        (0, iter([b"x" * 10, b"x"]), {}, 413),
        (0, b"x", {"Upload_Checksum": "crc99 AAAA"}, 400),
        (0, b"x", {"Upload_Checksum": "sha1 AAAA"}, 400),
        (0, b"x", {"Authorization": "Bearer no"}, 401),
    ],
)
def test_bytes_that_are_wrong(
    tus: httpx.Client, at: int, content: Any, headers: dict[str, str], status: int
) -> None:
    url = create(tus, b"0123456789")
    answer = patch(tus, url, at, content, **headers)
    problem(answer, status)
    assert answer.headers["Connection"] == "close"
    if status == 409:
        assert answer.headers["Upload-Offset"] == "0"


def test_what_belongs_to_others_or_is_gone(tus: httpx.Client, bob: httpx.Client) -> None:
    url = create(tus)
    bob.headers.update(VERSION)
    assert bob.head(url).status_code == 403
    problem(patch(bob, url, 0, b"x"), 403, "forbidden")
    private = create(tus, metadata=RAIN + "," + encoded(visibility="private"))
    assert bob.head(private).status_code == 404
    unknown = f"/tus/uploads/{uuid4()}"
    problem(patch(tus, unknown, 0, b"x"), 404, "not-found")
    assert patch(tus, url, 0, FILM[:9]).status_code == 204
    assert tus.delete(url).status_code == 204
    assert tus.head(url).status_code == 404
    problem(patch(tus, url, 9, b"x"), 404, "upload-gone")
    done = create(tus, b"short")
    assert patch(tus, done, 0, b"short").status_code == 204
    problem(tus.delete(done), 409, "conflict")


class Refused(Exception):
    """The program wants no bytes; its answer."""


def announce(tus: httpx.Client, server: Program, url: str, at: int) -> socket.socket:
    """A connection on which the program waits for the rest of the film."""
    head = {**VERSION, **BYTES, "Upload-Offset": str(at), "Expect": "100-continue"}
    head |= {"Host": "127.0.0.1", "Content-Length": str(len(FILM) - at)}
    head["Authorization"] = tus.headers["Authorization"]
    lines = "".join(f"{name}: {text}\r\n" for name, text in head.items())
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(f"PATCH {urlsplit(url).path} HTTP/1.1\r\n{lines}\r\n".encode())
    # Said once the program waits for the first byte.
    said = connection.recv(100)
    if not said.startswith(b"HTTP/1.1 100"):
        connection.close()
        raise Refused(said)
    return connection


def break_off(tus: httpx.Client, server: Program, url: str, stop: int) -> None:
    """Send what lies before `stop`, and lose the connection.

    What an earlier connection sent may come between: then nothing is sent.
    """
    at = offset(tus, url)
    with suppress(Refused), announce(tus, server, url, at) as connection:
        connection.sendall(FILM[at:stop])


def test_what_came_before_a_connection_was_lost_is_kept(tus: httpx.Client, server: Program) -> None:
    url, stop = create(tus), PART + 100

    def arrived() -> bool:
        # What the program had not read when it heard of the loss is lost, too.
        if offset(tus, url) < stop:
            break_off(tus, server, url, stop)
        return offset(tus, url) == stop

    eventually(arrived)
    assert played(tus, url, patch(tus, url, stop, FILM[stop:])) == FILM


def test_one_user_has_so_many_bodies_taken_in_at_once(server: Program) -> None:
    eve = server.client("eve")
    eve.headers.update(VERSION)
    with ExitStack() as stack:
        for _ in range(MOST_BODIES_OF_ONE):
            stack.enter_context(announce(eve, server, create(eve), 0))
        url = create(eve)
        answer = patch(eve, url, 0, FILM)
        assert problem(answer, 503, "overloaded")
        assert answer.headers["Retry-After"] == "2"
    eventually(lambda: patch(eve, url, offset(eve, url), FILM).status_code == 204)


@pytest.mark.chaos
def test_what_was_acknowledged_outlives_a_kill(make_program: Callable[..., Program]) -> None:
    program = make_program(**SMALL_PARTS).start()
    tus = program.client("alice")
    tus.headers.update(VERSION)
    url, at, answer = create(tus), 0, None
    for stop in (100, PART + 50, 2 * PART, len(FILM)):
        answer = patch(tus, url, at, FILM[at:stop])
        assert answer.status_code == 204
        at = stop
        program.kill()
        program.start()
        assert offset(tus, url) == at
    assert answer is not None
    assert played(tus, url, answer) == FILM

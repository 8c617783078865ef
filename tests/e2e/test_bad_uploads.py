"""Uploads, parts and completions that cannot be: the documented problem each, never a 5xx."""

from __future__ import annotations

import re
from urllib.parse import unquote

import httpx
import pytest

from domain.text import shows
from tests.e2e import plain
from tests.e2e.videos import MP4, pieces, problem, read, send_parts, start, upload
from tests.real_inputs import RealInput, each

UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("sizeBytes", size) for size in (-1, 0, 2**63, 10**400, 1.5, "10", True, None)],
        *[("title", title) for title in ("", "   ", "x" * 201, "\x00", None, 7)],
        *[("filename", name) for name in ("", " ", "x" * 256, "a\x00b")],
        *[("contentType", kind) for kind in ("", "text/html", "video/", "video/mp4\r\nX: y")],
        *[("category", category) for category in ("", " ", "x" * 51, "\x00")],
        *[("description", description) for description in ("x" * 5_001, "\x00", 3)],
    ],
    ids=lambda value: repr(value)[:24],
)
def test_an_upload_of_nothing_sensible(alice: httpx.Client, field: str, value: object) -> None:
    body = {"title": "T", "filename": "f.mp4", "contentType": "video/mp4", "sizeBytes": 10}
    found = problem(alice.post("/uploads", json={**body, field: value}), 422)
    assert field in found["detail"]


@each("media_types", always=4)
def test_a_film_is_played_as_what_it_is(alice: httpx.Client, real: RealInput) -> None:
    if real.right == "refused":
        body = {"title": "T", "filename": "f.mp4", "contentType": real.text, "sizeBytes": 1}
        assert "contentType" in problem(alice.post("/uploads", json=body), 422)["detail"]
        return
    film = upload(alice, b"x", contentType=real.text)
    played = plain.get(read(alice.post(f"/videos/{film}/watch"))["url"])
    assert played.headers["Content-Type"] == real.right
    assert played.headers["X-Content-Type-Options"] == "nosniff"


@each("file_names")
def test_a_film_keeps_its_name_as_far_as_that_is_harmless(
    alice: httpx.Client, real: RealInput
) -> None:
    body = {"title": "T", "filename": real.text, "contentType": "video/mp4", "sizeBytes": 1}
    if not shows(real.text):
        problem(alice.post("/uploads", json=body), 422, "invalid")
        return
    film = upload(alice, b"x", filename=real.text)
    played = plain.get(read(alice.post(f"/videos/{film}/watch"))["url"])
    kind, name = played.headers["Content-Disposition"].split("; ", 1)
    assert (kind, unquote(re.sub(r"^filename(\*=utf-8''|=\")|\"$", "", name))) == (
        "inline",
        real.right,
    )


def test_what_no_browser_plays_is_saved(alice: httpx.Client) -> None:
    film = upload(alice, b"x", filename="tape.avi", contentType="video/x-msvideo")
    played = plain.get(read(alice.post(f"/videos/{film}/watch"))["url"])
    assert played.headers["Content-Disposition"] == 'attachment; filename="tape.avi"'


@pytest.mark.parametrize(
    "numbers",
    [[], [0], [-1], [4], [10_001], [1, 2, 3, 4], [2**70], ["1"], [1.5], [None], "1", None],
)
def test_part_numbers_out_of_range(alice: httpx.Client, numbers: object) -> None:
    path = f"/uploads/{start(alice)['uploadId']}"
    problem(alice.post(f"{path}/part-urls", json={"numbers": numbers}), 422)


def test_parts_that_are_not_those_that_arrived(alice: httpx.Client) -> None:
    started = start(alice)
    path = f"/uploads/{started['uploadId']}/complete"
    parts = send_parts(started)

    def named(*etags: str) -> httpx.Response:
        listed = [{"number": number, "etag": etag} for number, etag in enumerate(etags, start=1)]
        return alice.post(path, json={"parts": listed})

    etags = [part["etag"] for part in parts]
    assert problem(named(etags[0], "0" * 32, etags[2]), 422, "parts-mismatch")["wrong"] == [2]
    assert problem(named(etags[0], etags[1]), 422, "parts-mismatch")["missing"] == [3]
    assert problem(named(*etags, etags[0]), 422, "parts-mismatch")["wrong"] == [4]
    swapped = problem(named(etags[1], etags[0], etags[2]), 422, "parts-mismatch")
    assert swapped["wrong"] == [1, 2]
    for junk in ("", "x" * 257, "\x00", "'; --", "🎬"):
        problem(named(etags[0], junk, etags[2]), 422)
    twice = [parts[0], parts[0], parts[1], parts[2]]
    problem(alice.post(path, json={"parts": twice}), 422)
    for odd in ({"number": 0, "etag": etags[0]}, {"number": "1", "etag": etags[0]}, {}, None):
        problem(alice.post(path, json={"parts": [odd]}), 422)
    assert read(alice.post(path, json={"parts": parts}))["status"] == "completed"


def test_a_part_that_is_not_what_was_signed(alice: httpx.Client) -> None:
    started = start(alice)
    first, second = started["parts"][:2]
    piece = pieces(MP4, started)[0]
    with plain.client() as sender:
        problem(sender.put(first["url"], content=piece[:-1]), 422, "part-too-short")
        problem(sender.put(first["url"], content=piece + b"x"), 413, "part-too-large")
        problem(sender.put(first["url"], content=iter([piece, b"x"])), 413, "part-too-large")
        problem(sender.put(first["url"], content=iter([piece[:9]])), 422, "part-too-short")
        wrong = {"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}
        problem(sender.put(first["url"], content=piece, headers=wrong), 422, "checksum-mismatch")
        problem(sender.put(first["url"], content=piece, headers={"Content-MD5": "?"}), 400)
        for old, new in (
            ("partNumber=1", "partNumber=2"),
            ("size=16384", "size=16385"),
            (started["uploadId"], UNKNOWN),
            ("signature=", "signature=0"),
            ("expires=", "expires=9"),
        ):
            assert old in first["url"]
            tampered = first["url"].replace(old, new)
            problem(sender.put(tampered, content=piece), 403, "url-signature-wrong")
        problem(sender.put(first["url"].replace("expires=", "expires=x"), content=piece), 422)
        problem(sender.get(second["url"]), 403)
    assert read(alice.get(f"/uploads/{started['uploadId']}"))["parts"] == []


def test_an_upload_of_somebody_else(alice: httpx.Client, bob: httpx.Client) -> None:
    started = start(alice)
    path = f"/uploads/{started['uploadId']}"
    parts = send_parts(started)
    assert read(alice.get(path))["status"] == "started"
    problem(bob.get(path), 403, "forbidden")
    problem(bob.post(f"{path}/part-urls", json={"numbers": [1]}), 403, "forbidden")
    problem(bob.post(f"{path}/complete", json={"parts": parts}), 403, "forbidden")
    problem(bob.delete(path), 403, "forbidden")
    assert read(alice.post(f"{path}/complete", json={"parts": parts}))["status"] == "completed"
    problem(alice.delete(path), 409, "conflict")

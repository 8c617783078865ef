"""`backlot upload` with what can't be uploaded, nor reached: one clear line each."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.unit.fake_uploads import CONTENT, URL, FakeUploads
from tests.unit.upload_runs import Upload


def test_what_is_no_file_to_upload(upload: Upload, tmp_path: Path, server: FakeUploads) -> None:
    empty, unknown = tmp_path / "empty.mp4", tmp_path / "notes.txt"
    empty.touch()
    unknown.write_text("Hello")
    assert (
        "missing.mp4 can't be read: No such file" in upload(path=tmp_path / "missing.mp4").complaint
    )
    assert "empty.mp4 is empty: there is nothing" in upload(path=empty).complaint
    assert "is not a file" in upload(path=tmp_path).complaint
    assert "does not look like video or audio" in upload(path=unknown).complaint
    assert server.calls == []
    assert upload("--content-type", "audio/x-notes", path=unknown).code == 0


@pytest.mark.parametrize("token", ["", "two words", "a\nb", "ü"])
def test_what_is_no_token(server: FakeUploads, upload: Upload, token: str) -> None:
    assert "--token: this is no token" in upload("--token", token).complaint
    assert server.calls == []


def test_a_token_that_the_server_refuses(server: FakeUploads, upload: Upload, state: Path) -> None:
    complaint = upload("--token", "rubbish").complaint
    assert "refuses the token (401 The token was refused: not readable.): give another" in complaint
    assert server.calls == ["POST /uploads"]
    assert list(state.iterdir()) == []


def test_a_token_and_a_user_contradict(upload: Upload) -> None:
    ran = upload("--token", "t", "--user", "u")
    assert (ran.code, ran.out) == (2, "")
    assert "already says who uploads" in ran.err


@pytest.mark.parametrize("ending", [".mkv", ".MP4", ".m4a", ".ts", ".webm", ".flac"])
def test_types_are_guessed_from_the_name(
    server: FakeUploads, upload: Upload, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"{'long' * 55}{ending}"
    path.write_bytes(CONTENT)
    assert upload(path=path).code == 0
    assert server.only.body["contentType"].startswith(("video/", "audio/"))
    assert len(server.only.body["title"]) == 200


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("backlot.example", "has to start with http"),
        ("http://x:eighty", "is not a URL"),
        ("ftp://x", "has to start with http"),
    ],
)
def test_an_address_that_is_none(upload: Upload, url: str, told: str) -> None:
    assert told in upload(url=url).complaint


@pytest.mark.parametrize(
    "answer",
    [httpx.Response(200, text="<html>"), httpx.Response(404, text="<html>"), httpx.Response(301)],
)
def test_something_else_there(server: FakeUploads, upload: Upload, answer: httpx.Response) -> None:
    server.faults["POST /uploads"].append(answer)
    assert f"what answers at {URL} is not Backlot" in upload().complaint

"""`backlot upload` against a server and a store that fail in every way they may."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from backlot.upload import run, transfer
from backlot.upload.transfer import FileChanged
from infra.http.auth import mint_token
from tests.unit.fake_uploads import CONTENT, SECRET, STORE, URL, FakeUploads, problem, xml
from tests.unit.upload_runs import Upload

PARTS = list(range(1, 12))


def test_a_file_arrives_as_it_is(server: FakeUploads, upload: Upload, state: Path) -> None:
    named = ("--title", "A film", "--category", "art", "--description", "Short.")
    told = upload(*named, "--visibility", "unlisted").told
    assert server.only.content() == CONTENT
    assert server.only.status == "completed"
    assert server.only.body == {
        "title": "A film",
        "filename": "film.mp4",
        "contentType": "video/mp4",
        "category": "art",
        "description": "Short.",
        "visibility": "unlisted",
        "sizeBytes": len(CONTENT),
    }
    assert told["url"] == f"{URL}/videos/{told['videoId']}"
    assert (told["parts"], told["partsSent"], told["resumed"]) == (11, 11, False)
    assert list(state.iterdir()) == []


def test_without_json_the_id_and_the_url_are_printed(
    server: FakeUploads, film: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.run_upload(film, URL, mint_token(SECRET, "alice"), named={}) == 0
    (video,) = server.uploads
    shown = capsys.readouterr()
    assert shown.out == f"video {video}\n{URL}/videos/{video}\n"
    assert f"uploading: {len(CONTENT)}/{len(CONTENT)} bytes" in shown.err


def test_the_token_stays_with_the_server(server: FakeUploads, upload: Upload) -> None:
    assert upload().code == 0
    to_store = [request for request in server.requests if str(request.url).startswith(STORE)]
    assert len(to_store) == 11
    for request in to_store:
        assert "Authorization" not in request.headers
        assert "Transfer-Encoding" not in request.headers
        assert int(request.headers["Content-Length"]) in (1000, 240)
    others = [request for request in server.requests if request not in to_store]
    assert all("Authorization" in request.headers for request in others)


def test_a_part_is_never_held_as_a_whole(
    server: FakeUploads, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "BLOCK_BYTES", 64)
    server.part_bytes = 5000
    assert upload().code == 0
    assert server.only.content() == CONTENT
    assert server.largest_block == 64


@pytest.mark.parametrize("parallel", [1, 3])
def test_so_many_parts_are_sent_at_once(server: FakeUploads, upload: Upload, parallel: int) -> None:
    server.crowd = parallel
    assert upload("--parallel", str(parallel)).code == 0
    assert server.most_at_once == parallel


def test_urls_are_asked_for_many_at_once(server: FakeUploads, upload: Upload) -> None:
    assert upload("--parallel", "1").code == 0
    assert server.asked == [[4, 5, 6, 7, 8, 9, 10, 11]]


@pytest.mark.parametrize("call", ["POST /uploads", "part-urls", "PUT 2", "PUT 11", "complete"])
@pytest.mark.parametrize(
    "fault",
    [
        problem(503, "store-unavailable"),
        problem(500, "internal"),
        problem(429, "rate-limited"),
        httpx.Response(408),
        httpx.Response(502, text="<html>"),
        httpx.ReadError("cut"),
        httpx.ReadTimeout("slow"),
    ],
    ids=lambda fault: str(getattr(fault, "status_code", type(fault).__name__)),
)
def test_what_passes_is_waited_for(
    server: FakeUploads, upload: Upload, call: str, fault: httpx.Response | Exception
) -> None:
    first_contact_fails = call == "POST /uploads" and isinstance(fault, Exception)
    server.faults[call].extend([fault, fault])
    ran = upload()
    if first_contact_fails:
        assert "no server at" in ran.complaint
    else:
        assert ran.told["partsSent"] == 11
        assert server.only.content() == CONTENT
        assert server.calls.count(call) == 3
    assert len(server.uploads) == (0 if first_contact_fails else 1)


def test_what_is_waited_for_is_told_once_and_bytes_count_once(
    server: FakeUploads, upload: Upload
) -> None:
    server.faults["PUT 2"].extend([problem(503, "unavailable", "down")] * 5)
    ran = upload()
    assert ran.err.count("PUT part 2: 503 down; trying again\n") == 1
    counts = [int(done) for done in re.findall(r"uploading: (\d+)/10240 bytes", ran.err)]
    assert counts
    assert max(counts) == len(CONTENT)


def test_each_try_of_a_part_has_a_fresh_url(server: FakeUploads, upload: Upload) -> None:
    server.faults["PUT 5"].extend([xml(403, "AccessDenied", "expired"), httpx.Response(500)])
    assert upload().code == 0
    urls = [str(r.url) for r in server.requests if r.url.params.get("partNumber") == "5"]
    assert len(set(urls)) == len(urls) == 3


def test_an_url_that_is_about_to_expire_is_not_used(server: FakeUploads, upload: Upload) -> None:
    server.url_seconds = 5.0
    assert upload("--parallel", "1").code == 0
    assert server.sent() == PARTS
    assert len(server.asked) == 11


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (xml(403, "AccessDenied", "No & never"), "PUT part 2: 403 No & never"),
        (xml(400, "BadDigest", "Other bytes"), "PUT part 2: 400 Other bytes"),
        (problem(422, "checksum-mismatch", "Other MD5"), "PUT part 2: 422 Other MD5"),
    ],
)
def test_a_part_that_is_refused_again_and_again(
    server: FakeUploads, upload: Upload, fault: httpx.Response, told: str
) -> None:
    server.faults["PUT 2"].append(fault)
    assert upload().code == 0
    server.faults["PUT 2"].extend([fault] * 6)
    server.calls.clear()
    assert told in upload("--no-resume").complaint
    assert server.calls.count("PUT 2") == 4


def test_a_refused_start_is_not_repeated(server: FakeUploads, upload: Upload, state: Path) -> None:
    server.faults["POST /uploads"].append(problem(422, "invalid", "`title`: too long."))
    ran = upload()
    assert ran.complaint == "backlot: POST /uploads: 422 `title`: too long."
    assert ran.err.count("\n") == 1
    assert server.calls == ["POST /uploads"]
    assert list(state.iterdir()) == []


@pytest.mark.parametrize("when", ["PUT 3", "PUT 11", "complete"])
def test_a_file_that_changes_meanwhile(
    server: FakeUploads, upload: Upload, film: Path, state: Path, when: str
) -> None:
    at = "PUT 11" if when == "complete" else when
    server.faults[at].append(lambda: film.write_bytes(CONTENT[:-1] + b"?"))
    if when != "complete":
        server.faults[at].append(httpx.ReadError("cut"))
    complaint = upload("--parallel", "1").complaint
    assert "film.mp4 changed while it was uploaded" in complaint
    assert server.only.status == "aborted"
    assert "complete" not in server.calls
    assert list(state.iterdir()) == []


def test_a_file_that_is_cut_off_or_removed_meanwhile(
    server: FakeUploads, upload: Upload, film: Path
) -> None:
    server.faults["PUT 1"].append(lambda: film.write_bytes(CONTENT[:1500]))
    assert "changed while it was uploaded" in upload().complaint
    server.faults["PUT 1"].append(film.unlink)
    assert "changed while it was uploaded" in upload().complaint


def test_a_file_that_ends_too_early_is_not_waited_for(
    film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(opened: transfer.LocalFile) -> None:
        async for _ in opened.blocks(0, len(CONTENT)):
            os.truncate(film, 10)

    monkeypatch.setattr(transfer, "BLOCK_BYTES", 64)
    with transfer.LocalFile(film) as opened, pytest.raises(FileChanged):
        asyncio.run(read(opened))


def test_a_completion_by_another_is_waited_for(server: FakeUploads, upload: Upload) -> None:
    server.faults["complete"].extend([problem(409, "upload-finalizing")] * 9)
    assert upload().code == 0
    assert server.calls.count("complete") == 10


def test_a_server_that_keeps_another_size(server: FakeUploads, upload: Upload) -> None:
    ids = {"uploadId": str(UUID(int=1)), "videoId": str(UUID(int=1)), "etag": "whole"}
    told = {**ids, "status": "completed", "sizeBytes": 10_239}
    server.faults["complete"].append(httpx.Response(200, json=told))
    assert "keeps 10239 bytes of the 10240 of" in upload().complaint


def test_parts_that_got_lost_are_sent_again(server: FakeUploads, upload: Upload) -> None:
    server.faults["complete"].append(lambda: server.only.parts.pop(4))
    server.faults["complete"].append(lambda: server.only.parts.update({6: b"x"}))
    assert upload().told["partsSent"] == 13
    assert server.only.content() == CONTENT


@pytest.mark.parametrize("call", ["PUT 5", "part-urls", "complete"])
def test_an_upload_that_is_aborted_meanwhile(
    server: FakeUploads, upload: Upload, state: Path, call: str
) -> None:
    server.faults[call].append(lambda: setattr(server.only, "status", "aborted"))
    assert "the upload was aborted meanwhile: run the same" in upload().complaint
    assert list(state.iterdir()) == []


def test_an_upload_that_another_run_completes_meanwhile(
    server: FakeUploads, upload: Upload
) -> None:
    server.faults["PUT 5"].append(lambda: setattr(server.only, "status", "completed"))
    assert upload().code == 0

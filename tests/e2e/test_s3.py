"""The program with an S3 beside it: bytes go by presigned URLs, and an outage stays the store's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.e2e import plain
from tests.e2e.program import Program
from tests.e2e.videos import problem, read, see, start, upload
from tests.integration.s3_server import BUCKET, S3Server, s3_server
from tests.support import unused_port

PART_BYTES = 5 * 1024 * 1024
FILM = b"a film of two parts " * (PART_BYTES // 20 + 1)
SMALL = {"PART_SIZE_BYTES": str(PART_BYTES)}


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture(scope="module")
def program(s3: S3Server, short_dir: Any) -> Iterator[Program]:
    program = Program(short_dir / "s3", unused_port(), {**s3.settings(), **SMALL})
    try:
        yield program.start()
        assert program.stop() == 0
        assert "request_broke" not in program.complained
    finally:
        program.clean_up()


@pytest.fixture
def owner(program: Program) -> httpx.Client:
    return program.client("owner")


def test_a_film_goes_up_and_comes_down_by_way_of_s3(
    program: Program, owner: httpx.Client, s3: S3Server
) -> None:
    video = upload(owner, FILM, filename="ein Film für dich.mp4")
    url = read(owner.post(f"/videos/{video}/watch"))["url"]
    assert url.startswith(f"{s3.url}/{BUCKET}/videos/{video}?")
    film = plain.get(url)
    assert film.content == FILM
    assert film.headers["Content-Type"] == "video/mp4"
    assert "ein%20Film%20f%C3%BCr%20dich.mp4" in film.headers["Content-Disposition"]
    assert plain.get(url, headers={"Range": "bytes=2-5"}).content == FILM[2:6]
    assert not (program.data / "objects").exists() or not list(
        (program.data / "objects").rglob("videos/*")
    )


def test_an_upload_is_resumed_from_what_s3_holds(owner: httpx.Client) -> None:
    started = start(owner, FILM)
    where = f"/uploads/{started['uploadId']}"
    first, second = FILM[:PART_BYTES], FILM[PART_BYTES:]
    assert plain.put(started["parts"][0]["url"], content=first[:-1]).status_code == 403
    assert plain.put(started["parts"][0]["url"], content=first).status_code == 200
    (arrived,) = read(owner.get(where))["parts"]
    assert (arrived["number"], arrived["sizeBytes"]) == (1, PART_BYTES)
    assert problem(owner.post(f"{where}/complete"), 422, "parts-mismatch")["missing"] == [2]
    (fresh,) = read(owner.post(f"{where}/part-urls", json={"numbers": [2]}))["parts"]
    assert plain.put(fresh["url"], content=second).status_code == 200
    answers = [owner.post(f"{where}/complete") for _ in range(2)]
    assert read(answers[0]) == read(answers[1])
    assert read(answers[0])["sizeBytes"] == len(FILM)


def test_what_is_given_up_or_removed_is_gone_from_s3(owner: httpx.Client, s3: S3Server) -> None:
    started = start(owner, FILM)
    assert owner.delete(f"/uploads/{started['uploadId']}").status_code == 200
    assert plain.put(started["parts"][0]["url"], content=FILM[:PART_BYTES]).status_code == 404
    video = upload(owner, FILM)
    url = read(owner.post(f"/videos/{video}/watch"))["url"]
    assert owner.delete(f"/videos/{video}").status_code == 200
    assert plain.get(url).status_code == 404


def test_backlot_itself_moves_no_bytes(program: Program) -> None:
    client = program.client()
    assert all("/objects" not in path for path in read(client.get("/openapi.json"))["paths"])
    problem(client.put("/objects/videos/x", content=b"x"), 404)


def test_the_doctor_asks_the_bucket(program: Program, s3: S3Server) -> None:
    report = program.run("doctor")
    (line,) = (line for line in report.stdout.splitlines() if " objects " in line)
    assert line.startswith("ok ")
    assert " ".join(line.split()).endswith(f"external {s3.url}/{BUCKET} the bucket answers")
    report = program.run("doctor", S3_BUCKET="elsewhere")
    (line,) = (line for line in report.stdout.splitlines() if " objects " in line)
    assert line.startswith("FAIL")
    assert "no such bucket" in line
    assert s3.settings()["S3_SECRET_ACCESS_KEY"] not in report.stdout


def test_with_s3_away_only_uploads_wait(make_program: Callable[..., Program]) -> None:
    with s3_server() as s3:
        program = make_program(**s3.settings()).start()
        owner = program.client("owner")
        video = upload(owner, b"short")
        s3.process.kill()
        s3.process.wait()
        refused = problem(owner.post("/uploads", json=UPLOAD), 503, "object-store-unavailable")
        assert s3.url.removeprefix("http://") not in str(refused)
        assert read(owner.post(f"/videos/{video}/like"))["hasLiked"]
        see(owner, owner.post(f"/videos/{video}/comments", json={"content": "Good"}))
        assert read(owner.get(f"/videos/{video}"))["comments"] == 1
        ready = owner.get("/readyz")
        assert ready.status_code == 503
        assert not ready.json()["parts"]["objects"]["ok"]
        assert s3.url.removeprefix("http://") not in ready.text
        assert "s3_unusable" in program.complained
    assert program.stop() == 0


UPLOAD = {"title": "Four", "filename": "four.mp4", "contentType": "video/mp4", "sizeBytes": 4}


@pytest.mark.parametrize(
    ("changed", "code", "told"),
    [
        ({"S3_BUCKET": "elsewhere"}, 4, "there is no such bucket"),
        ({"S3_ENDPOINT_URL": "http://127.0.0.1:{free}"}, 4, "check S3_ENDPOINT_URL"),
        ({"S3_SECRET_ACCESS_KEY": ""}, 2, "set both or neither"),
        ({"PART_SIZE_BYTES": "1048576"}, 2, "PART_SIZE_BYTES: S3 takes parts of at least"),
    ],
)
def test_a_start_without_its_bucket_is_one_clear_line(
    make_program: Callable[..., Program],
    s3: S3Server,
    free_port: int,
    changed: dict[str, str],
    code: int,
    told: str,
) -> None:
    variables = {name: text.format(free=free_port) for name, text in changed.items()}
    program = make_program(**{**s3.settings(), **variables})
    assert program.launch().wait() == code
    (line,) = (said for said in program.complained.splitlines() if said != "starting Backlot …")
    assert line.startswith("backlot: ")
    assert told in line
    assert program.servers() == []

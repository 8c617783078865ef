"""The bucket's own rules for pages of other origins: told at the start, and by the doctor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from structlog.testing import capture_logs

from backlot.doctor import examine
from backlot.installation import open_objects
from infra.data_folder import DataFolder
from infra.objects.s3_cors import look_at_cors, rule
from infra.settings import load_settings
from tests.integration.s3_server import BUCKET, S3Server, s3_server

PAGE, OTHER = "https://app.example.org", "http://localhost:5173"
ORIGINS = {PAGE, OTHER}


@pytest.fixture
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with S3, only rules let pages in: moto answers every browser that it may send."""
    monkeypatch.setattr("infra.objects.s3_cors._is_answered", lambda *_: False)


def put(server: S3Server, text: str, **changes: Any) -> None:
    told = json.loads(text)
    told["CORSRules"][0] |= changes
    server.client().put_bucket_cors(Bucket=BUCKET, CORSConfiguration=told)


@pytest.mark.usefixtures("strict")
def test_a_bucket_without_rules_is_told_the_one_that_it_needs(server: S3Server) -> None:
    found = look_at_cors(server.place(), ORIGINS)
    assert found.admits is False
    assert found.detail == (
        f"pages of {OTHER}, {PAGE} can't use the bucket; give it this rule: {rule(ORIGINS)}"
    )


def test_the_rule_that_is_told_is_one_that_does(server: S3Server) -> None:
    put(server, rule(ORIGINS))
    assert look_at_cors(server.place(), ORIGINS).admits
    put(server, rule({"*"}))
    assert look_at_cors(server.place(), {"*"}).admits


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    ("changes", "does"),
    [
        ({}, True),
        ({"AllowedOrigins": ["https://*.example.org"]}, True),
        ({"AllowedOrigins": ["https://*.example.com"]}, False),
        ({"AllowedOrigins": ["https://appXexample.org"]}, False),
        ({"AllowedMethods": ["GET"]}, False),
        ({"AllowedMethods": ["PUT"]}, False),
        ({"AllowedHeaders": ["Content-*"]}, True),
        ({"AllowedHeaders": ["authorization"]}, False),
        ({"ExposeHeaders": ["etag"]}, True),
        ({"ExposeHeaders": []}, False),
    ],
)
def test_a_rule_does_if_pages_can_send_parts_and_play(
    server: S3Server, changes: dict[str, list[str]], does: bool
) -> None:
    put(server, rule({PAGE}), **changes)
    assert look_at_cors(server.place(), {PAGE}).admits is does


class Proxy(BaseHTTPRequestHandler):
    """Answers browsers before they send, as that of the composition does."""

    def do_OPTIONS(self) -> None:
        self.send_response(204)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Access-Control-Allow-Methods", "GET, HEAD, PUT")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Say nothing."""


def test_a_proxy_may_answer_in_place_of_the_store(server: S3Server) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        thread = Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        public = f"http://127.0.0.1:{proxy.server_port}"
        for origins in (ORIGINS, {"*"}):
            assert look_at_cors(server.place(public_endpoint_url=public), origins).admits
        proxy.shutdown()
        thread.join()


def test_what_nobody_tells_is_not_known(server: S3Server) -> None:
    nowhere = server.place(bucket="of-nobody")
    found = look_at_cors(nowhere, ORIGINS)
    assert found.admits is None
    assert "there is no such bucket" in found.detail
    assert rule(ORIGINS) in found.detail


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("there", [False, True])
def test_the_start_and_the_doctor_tell_of_it(
    server: S3Server, there: bool, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**server.settings(), "CORS_ORIGINS": ",".join(ORIGINS)}
    if there:
        put(server, rule(ORIGINS))
    settings = load_settings({**given, "BACKLOT_DATA_DIR": str(short_dir / "cors")})
    with capture_logs() as logged, ExitStack() as stack:
        folder = stack.enter_context(DataFolder(settings.server.data_dir))
        open_objects(settings, folder, "some secret", stack)
    told = [line["detail"] for line in logged if line["event"] == "s3_cors_lacking"]
    assert len(told) == (0 if there else 1)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(short_dir)
    monkeypatch.setenv("BACKLOT_DATA_DIR", str(short_dir / "of-the-doctor"))
    (objects,) = (part for part in examine() if part.name == "objects")
    assert objects.ok is there
    assert (rule(ORIGINS) in objects.detail) is not there

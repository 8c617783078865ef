"""The doctor at the bedside of running, killed and foreign servers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from backlot.doctor import Part, examine
from infra.data_folder import DataFolder
from infra.postgres import EmbeddedPostgres


@pytest.fixture
def folder(short_dir: Path, monkeypatch: pytest.MonkeyPatch, free_port: int) -> Iterator[Path]:
    folder = short_dir / "doctor"
    monkeypatch.chdir(short_dir)
    monkeypatch.setenv("BACKLOT_DATA_DIR", str(folder))
    monkeypatch.setenv("BACKLOT_PORT", str(free_port))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def part(name: str) -> Part:
    (found,) = (part for part in examine() if part.name == name)
    return found


def test_a_running_embedded_database(folder: Path) -> None:
    with DataFolder(folder) as data, EmbeddedPostgres(data.postgres) as server:
        database, api = part("database"), part("api")
        assert (database.kind, database.url, database.ok) == ("embedded", server.url, True)
        assert "PostgreSQL 18" in database.detail
        # The folder is held, so something should answer; it does not.
        assert not api.ok
    assert "not running" in part("database").detail


def test_an_external_database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    database = part("database")
    assert (database.kind, database.ok) == ("external", True)


class Answering(BaseHTTPRequestHandler):
    answer: tuple[int, bytes] = (200, b"")

    def do_GET(self) -> None:
        status, body = self.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        pass


@pytest.mark.parametrize(
    ("status", "body", "ok", "detail"),
    [
        (200, {"ready": True, "parts": {"database": {"ok": True}}}, True, "ready"),
        (503, {"parts": {"objects": {"ok": True}, "database": {"ok": False}}}, False, ": database"),
        (200, {"hello": "world"}, False, "another program"),
        (404, "nothing", False, "another program"),
    ],
)
def test_what_answers_at_the_port(
    folder: Path, free_port: int, status: int, body: object, ok: bool, detail: str
) -> None:
    Answering.answer = (status, json.dumps(body).encode())
    server = HTTPServer(("127.0.0.1", free_port), Answering)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        api = part("api")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert api.ok is ok
    assert detail in api.detail

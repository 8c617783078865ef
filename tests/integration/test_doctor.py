"""The doctor at the bedside of running, killed and foreign servers."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from backlot import doctor, health
from backlot.doctor import examine
from backlot.health import DoctorPart
from commands.webhooks import AddNewWebhook, DisableWebhook
from domain.webhooks import DisabledBecause
from engine.event_store import open_recorder
from infra.data_folder import DataFolder
from infra.http.keys import read_or_make_secret
from infra.postgres.connection import breaker_of
from infra.postgres.server import EmbeddedPostgres
from infra.settings.values import TcpAddress
from projections.analytics.schema import migrate
from projections.recommendations import embeddings
from projections.recommendations.embeddings import Embedded
from tests.integration.buses import execute, open_bus
from tests.kafka_cluster import kafka_cluster
from tests.kafka_topics import topic_broker
from tests.support import hung, unused_port
from tests.two_users import as_user

FIELDS = [field.name for field in fields(DoctorPart)]


@pytest.fixture
def folder(short_dir: Path, monkeypatch: pytest.MonkeyPatch, free_port: int) -> Iterator[Path]:
    folder = short_dir / "doctor"
    monkeypatch.chdir(short_dir)
    monkeypatch.setenv("BACKLOT_DATA_DIR", str(folder))
    monkeypatch.setenv("BACKLOT_PORT", str(free_port))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def part(name: str) -> DoctorPart:
    (found,) = (part for part in examine() if part.name == name)
    return found


@pytest.mark.parametrize("host", [None, "0.0.0.0"])
def test_a_running_embedded_database(folder: Path, host: str | None) -> None:
    port = unused_port()
    listen = None if host is None else TcpAddress(host, port)
    with DataFolder(folder) as data, EmbeddedPostgres(data.postgres, listen=listen) as server:
        database, api = part("database"), part("api")
        assert (database.kind, database.url, database.ok) == ("embedded", server.url, True)
        assert "PostgreSQL 18" in database.detail
        assert (f"at {host}:{port}" in database.detail) is (host is not None)
        assert ("without TLS" in database.detail) is (host == "0.0.0.0")
        # The folder is held, so something should answer; it does not.
        assert not api.ok
    assert "not running" in part("database").detail


@pytest.mark.no_analytics
def test_a_user_who_may_rewrite_the_log_is_told(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(database_url, autocommit=True) as root:
        root.execute("CREATE ROLE only_adds LOGIN")
        try:
            root.execute("GRANT SELECT, INSERT ON backlot_events, backlot_seals TO only_adds")
            for user, told in (("postgres", True), ("only_adds", False)):
                monkeypatch.setenv("DATABASE_URL", as_user(database_url, user))
                database = part("database")
                assert database.ok
                assert ("may rewrite the log" in database.detail) is told
        finally:
            root.execute("DROP OWNED BY only_adds")
            root.execute("DROP ROLE only_adds")


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


@contextmanager
def answering(port: int, answer: tuple[int, bytes]) -> Iterator[None]:
    Answering.answer = answer
    server = HTTPServer(("127.0.0.1", port), Answering)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


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
    with answering(free_port, (status, json.dumps(body).encode())):
        api = part("api")
    assert api.ok is ok
    assert detail in api.detail


def test_whatever_fails_has_a_remedy() -> None:
    """`failure` asks for one; so no part is made as failed without it."""
    calls = [
        node
        for module in (doctor, health)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Call)
    ]
    parts = [
        call for call in calls if ast.unparse(call.func) == "DoctorPart" and len(call.args) > 1
    ]
    flags = [ast.unparse(call.args[FIELDS.index("ok")]) for call in parts]
    assert flags.count("True") > 10
    assert flags.count("False") == 1, "only `failure` itself"


@pytest.mark.parametrize(
    ("name", "variables", "remedy"),
    [
        ("settings", {"BACKLOT_PORT": "much"}, "set it in the environment"),
        ("database", {"DATABASE_URL": "postgresql://127.0.0.1:1/none"}, "see DATABASE_URL"),
        ("analytics", {"TIMESCALE_URL": "postgresql://127.0.0.1:1/none"}, "see TIMESCALE_URL"),
        (
            "objects",
            {
                "S3_BUCKET": "films",
                "S3_ENDPOINT_URL": "http://127.0.0.1:1",
                "AWS_ACCESS_KEY_ID": "nobody",
                "AWS_SECRET_ACCESS_KEY": "nothing",
            },
            "see S3_ENDPOINT_URL",
        ),
        ("redis", {"REDIS_URL": "redis://127.0.0.1:1"}, "see REDIS_URL"),
        ("locks", {"REDLOCK_URLS": "redis://127.0.0.1:1"}, "see REDLOCK_URLS"),
        ("tasks", {"REDIS_URL": "redis://127.0.0.1:1"}, "see TASK_BROKER_URL"),
        ("kafka", {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}, "see KAFKA_BOOTSTRAP_SERVERS"),
        ("llm", {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}, "see OPENAI_BASE_URL"),
        ("embeddings", {"EMBEDDING_MODEL": "small"}, "set one of these"),
        (
            "auth",
            {"JWT_JWKS_URL": "http://127.0.0.1:1/keys", "JWT_AUDIENCE": "backlot"},
            "see JWT_JWKS_URL",
        ),
    ],
)
def test_what_fails_says_what_to_do(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    variables: dict[str, str],
    remedy: str,
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    found = part(name)
    assert not found.ok
    assert remedy in found.detail


def test_a_secret_that_can_be_guessed_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with DataFolder(folder) as data:
        read_or_make_secret(data.secret)
        assert part("auth").ok
        data.secret.write_text("changeme" * 5)
        weak = part("auth")
        assert not weak.ok
        assert "the local secret repeats a pattern" in weak.detail
        assert f"remove {data.secret}" in weak.detail
    monkeypatch.setenv("JWT_SECRET", "your-256-bit-secret-change-in-production")
    (settings,) = examine()
    assert not settings.ok
    assert "JWT_SECRET: is made of words that every guesser tries" in settings.detail


def test_a_program_that_hangs_is_told_from_another_one(
    folder: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PATIENCE_SECONDS", 0.2)
    # The kernel takes the connection for it; nobody ever reads from it.
    with socket.create_server(("127.0.0.1", free_port)):
        api = part("api")
    assert not api.ok
    assert api.detail.startswith("it hangs: something took the connection")
    with DataFolder(folder), socket.create_server(("127.0.0.1", free_port)):
        assert f"it hangs: pid {os.getpid()} took the connection" in part("api").detail


class TestHungDatabase:
    @pytest.fixture(autouse=True)
    def _forgotten(self) -> Iterator[None]:
        yield
        breaker_of.cache_clear()

    def test_an_embedded_one(self, folder: Path) -> None:
        with DataFolder(folder) as data, EmbeddedPostgres(data.postgres) as server:
            assert server.pid is not None
            with hung(server.pid):
                found = {each.name: each for each in examine()}
        assert not found["database"].ok
        assert found["database"].detail.startswith("it hangs")
        # Whose fault it is stands in one line.
        for other in ("projections", "analytics"):
            assert found[other].ok
            assert "not known" in found[other].detail

    def test_one_that_a_killed_program_left(self, folder: Path) -> None:
        with DataFolder(folder) as data:
            server = EmbeddedPostgres(data.postgres)
            server.start()
        assert server.pid is not None
        with hung(server.pid):
            assert part("database").detail.startswith("it hangs")
        server.stop()

    def test_another_program_there_is_told_from_it(
        self, free_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", f"postgresql://backlot@127.0.0.1:{free_port}/backlot")
        with refusing(free_port):
            database = part("database")
        assert not database.ok
        assert "invalid response" in database.detail
        assert "hangs" not in database.detail

    def test_none_there_is_told_from_it(
        self, free_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", f"postgresql://backlot@127.0.0.1:{free_port}/backlot")
        database = part("database")
        assert not database.ok
        assert "refused" in database.detail


@contextmanager
def refusing(port: int) -> Iterator[None]:
    """A server that answers whatever it is told with an error of HTTP."""
    over = Event()

    def serve(listener: socket.socket) -> None:
        while not over.is_set():
            connected, _ = listener.accept()
            with connected:
                if connected.recv(8):
                    connected.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield
        finally:
            over.set()
            socket.create_connection(("127.0.0.1", port)).close()
            thread.join()


class TestLanguageModel:
    def test_none(self, folder: Path) -> None:
        assert "skipped" in part("llm").detail

    @pytest.mark.parametrize(
        ("status", "ok", "detail"),
        [(200, True, "answers"), (404, True, "answers"), (401, False, "OPENAI_API_KEY")],
    )
    def test_one_that_answers(
        self,
        folder: Path,
        free_port: int,
        monkeypatch: pytest.MonkeyPatch,
        status: int,
        ok: bool,
        detail: str,
    ) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{free_port}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-never-shown")
        with answering(free_port, (status, b"{}")):
            llm = part("llm")
        assert (llm.ok, llm.kind) == (ok, "external")
        assert detail in llm.detail
        assert "never-shown" not in str(llm.as_dict())

    def test_one_that_does_not(
        self, folder: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{free_port}/v1")
        assert not part("llm").ok


class TestKafkaAndTasks:
    def test_one_broker_of_two(
        self, folder: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with topic_broker({}) as broker:
            up = broker.bootstrap_servers
            monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", f"127.0.0.1:{free_port},{up}")
            kafka = part("kafka")
        assert kafka.ok
        assert kafka.detail.startswith("1 of 2")
        assert "not known" not in kafka.detail
        assert not part("kafka").ok

    def test_topics_that_keep_texts_for_ever(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with topic_broker({"comment.created": {"retention.ms": "-1"}}) as broker:
            monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap_servers)
            kafka = part("kafka")
            broker.topics = {"comment.created": {"retention.ms": "1000", "segment.ms": "1000"}}
            assert part("kafka").ok
        assert not kafka.ok
        assert "longer than 7 days: comment.created (retention.ms=-1" in kafka.detail

    def test_topics_of_a_kafka_that_does_not_tell(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with kafka_cluster() as cluster:
            monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", cluster.bootstrap_servers)
            kafka = part("kafka")
        assert kafka.ok
        assert "how long topics keep texts is not known" in kafka.detail

    def test_queues_of_a_redis_that_is_away(
        self, folder: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = f"redis://user:hunter2@127.0.0.1:{free_port}/0"
        monkeypatch.setenv("TASK_BROKER_URL", url)
        tasks = part("tasks")
        assert not tasks.ok
        assert "hunter2" not in str(tasks.as_dict())


class TestAnalytics:
    @pytest.mark.no_analytics
    def test_of_a_database_that_has_them(
        self, folder: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TIMESCALE_URL", database_url)
        assert part("analytics").detail.startswith("not made yet")
        with psycopg.connect(database_url, autocommit=True) as conn:
            made = migrate(conn)
        found = part("analytics")
        assert (found.ok, found.kind, found.detail) == (True, "external", str(made))

    def test_of_one_that_is_away(
        self, folder: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = f"postgresql://user:hunter2@127.0.0.1:{free_port}/counted"
        monkeypatch.setenv("TIMESCALE_URL", url)
        found = part("analytics")
        assert not found.ok
        assert "hunter2" not in str(found.as_dict())


class TestEmbeddings:
    @pytest.fixture(autouse=True)
    def _a_model(self, folder: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TIMESCALE_URL", database_url)
        monkeypatch.setenv("EMBEDDING_MODEL", "places")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-1")

    def test_of_a_database_that_has_them(self, database_url: str) -> None:
        assert part("embeddings").detail.startswith("not made yet")
        with psycopg.connect(database_url, autocommit=True) as conn:
            migrate(conn)
            embeddings.prepare(conn, "places", 4)
            done = [Embedded(uuid4(), b"", [1.0] * 4), Embedded(uuid4(), b"", None, "rejected")]
            embeddings.put(conn, done)
        found = part("embeddings")
        assert found.ok
        assert found.detail == "places, 4 dimensions: 1 texts embedded, 1 rejected"

    def test_what_is_lacking_has_to_be_mended(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embeddings, "EXTENSION", b"SELECT false, NULL, false")
        found = part("embeddings")
        assert not found.ok
        assert "no pgvector" in found.detail

    def test_a_model_without_a_provider(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OPENAI_API_KEY")
        found = part("embeddings")
        assert not found.ok
        assert "OPENAI_BASE_URL" in found.detail


class TestWebhooks:
    def test_one_that_fails_has_to_be_mended_and_one_that_was_stopped_has_not(
        self, folder: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", database_url)
        assert part("webhooks").detail == "none"

        async def disable(reason: DisabledBecause) -> UUID:
            hook, topics = uuid4(), frozenset({"video.liked"})
            with closing(open_recorder(database_url)) as recorder:
                async with open_bus(recorder) as bus:
                    added = AddNewWebhook(hook, uuid4(), "https://hooks.example/", topics)
                    await execute(bus, added)
                    await execute(bus, DisableWebhook(hook, reason))
            return hook

        asyncio.run(disable(DisabledBecause.ASKED))
        assert (part("webhooks").ok, part("webhooks").detail) == (True, "1")
        hook = asyncio.run(disable(DisabledBecause.FAILING))
        found = part("webhooks")
        assert not found.ok
        assert f"{hook} is disabled (failing); " in found.detail
        assert "backlot webhooks enable" in found.detail

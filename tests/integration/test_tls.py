"""Servers that prove who they are by a private CA, and ask the same of this program."""

from __future__ import annotations

import select
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import redis
from psycopg import OperationalError

from infra.kafka import KafkaMisconfigured, client_options
from infra.postgres.connection import open_connection
from infra.redis import connect_blocking_redis
from infra.settings import load_settings
from tests.certificates import Authority, Identity
from tests.support import DEADLINE_SECONDS, eventually, requires, unused_port


@pytest.fixture(scope="module")
def authority(short_dir: Path) -> Authority:
    return Authority(short_dir / "pki")


@pytest.fixture(scope="module")
def stranger(short_dir: Path) -> Authority:
    """Another one, which nobody trusts."""
    return Authority(short_dir / "strange", "Another CA")


@pytest.fixture(scope="module")
def redis_url(authority: Authority, short_dir: Path) -> Iterator[str]:
    """The URL of a Redis that speaks TLS only, and to certificates of the authority only."""
    server, port = authority.identity("127.0.0.1"), unused_port()
    place = ["--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", ""]
    files: list[str | Path] = ["--tls-cert-file", server.certificate, "--tls-key-file", server.key]
    files += ["--tls-ca-cert-file", authority.file, "--dir", short_dir]
    process = subprocess.Popen(
        [requires("redis-server"), *place, *files], stdout=subprocess.DEVNULL
    )
    try:
        yield f"rediss://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


def asked(url: str, **files: Path) -> bool:
    """Whether Redis answers a client with these settings. Raises redis.RedisError."""
    given = {name: str(path) for name, path in files.items()}
    configured = load_settings({"REDIS_URL": url, **given}).redis.url
    assert configured is not None
    with closing(connect_blocking_redis(configured.get_secret_value())) as client:
        return bool(client.ping())


def test_redis_is_believed_by_the_configured_authority(
    redis_url: str, authority: Authority, stranger: Authority
) -> None:
    me = authority.identity("backlot")
    mine = {"REDIS_CERT_FILE": me.certificate, "REDIS_KEY_FILE": me.key}

    def answers() -> bool:
        with suppress(redis.ConnectionError):
            return asked(redis_url, REDIS_CA_FILE=authority.file, **mine)
        return False

    assert eventually(answers)
    with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
        asked(redis_url, REDIS_CA_FILE=stranger.file, **mine)
    with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
        asked(redis_url, **mine)
    # Its certificate is for the address, not for the name that leads there.
    with pytest.raises(redis.ConnectionError, match=r"[Hh]ostname mismatch"):
        asked(redis_url.replace("127.0.0.1", "localhost"), REDIS_CA_FILE=authority.file, **mine)
    with pytest.raises(redis.RedisError):
        asked(redis_url, REDIS_CA_FILE=authority.file)


class TlsFront:
    """TLS before a PostgreSQL, whose build here has none: it does what the server's own would."""

    def __init__(self, behind: str, identity: Identity, clients: Authority) -> None:
        self._behind = behind
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(identity.certificate, identity.key)
        self._context.load_verify_locations(clients.file)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.seen: list[str] = []

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                Thread(target=self._pass, args=(client,), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _pass(self, client: socket.socket) -> None:
        with ExitStack() as stack:
            stack.enter_context(suppress(OSError))
            stack.enter_context(client)
            assert len(client.recv(8)) == 8, "a request for TLS comes first"
            client.sendall(b"S")
            near = stack.enter_context(self._context.wrap_socket(client, server_side=True))
            certificate = near.getpeercert() or {}
            self.seen.append(str(certificate["subject"]))
            far = stack.enter_context(socket.socket(socket.AF_UNIX))
            far.connect(self._behind)
            _exchange(near, far)


def _exchange(near: ssl.SSLSocket, far: socket.socket) -> None:
    while True:
        ready = [near] if near.pending() else select.select([near, far], [], [])[0]
        for one, other in ((near, far), (far, near)):
            if one in ready:
                data = one.recv(65536)
                if not data:
                    return
                other.sendall(data)


@contextmanager
def tls_before(url: str, identity: Identity, clients: Authority) -> Iterator[TlsFront]:
    (folder,) = parse_qs(urlsplit(url).query)["host"]
    front = TlsFront(f"{folder}/.s.PGSQL.5432", identity, clients)
    thread = Thread(target=front.serve)
    thread.start()
    try:
        yield front
    finally:
        front.close()
        thread.join()


def test_postgresql_is_believed_by_the_authority_of_its_url(
    database_url: str, authority: Authority, stranger: Authority
) -> None:
    me = authority.identity("backlot")
    server = authority.identity("127.0.0.1")
    database = urlsplit(database_url).path

    def url(host: str, **files: Path | str) -> str:
        query = urlencode({"sslmode": "verify-full", **{k: str(v) for k, v in files.items()}})
        given = {"DATABASE_URL": f"postgresql://postgres@{host}:{front.port}{database}?{query}"}
        configured = load_settings(given).database.url
        assert configured is not None
        return configured.get_secret_value()

    with tls_before(database_url, server, authority) as front:
        mine = {"sslcert": me.certificate, "sslkey": me.key}
        with open_connection(url("127.0.0.1", sslrootcert=authority.file, **mine), "test") as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)
        assert "backlot" in front.seen[0]
        for wrong in (
            url("127.0.0.1", sslrootcert=stranger.file, **mine),
            url("localhost", sslrootcert=authority.file, **mine),
            url("127.0.0.1", sslrootcert=authority.file),
        ):
            with pytest.raises(OperationalError, match=r"(?i)certificate|host name|SSL"):
                open_connection(wrong, "test")


def kafka(**more: Path | str) -> dict[str, str]:
    given = {"KAFKA_BOOTSTRAP_SERVERS": "localhost:9093", "KAFKA_SECURITY_PROTOCOL": "SSL"}
    return given | {name: str(value) for name, value in more.items()}


def greeted(context: ssl.SSLContext, host: str, identity: Identity, clients: Authority) -> str:
    """Whom a broker sees that asks for a certificate. Raises ssl.SSLError."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(identity.certificate, identity.key)
    server.load_verify_locations(clients.file)
    server.verify_mode = ssl.CERT_REQUIRED
    near, far = socket.socketpair()
    seen: list[str] = []

    def broker() -> None:
        with suppress(ssl.SSLError, OSError), server.wrap_socket(far, server_side=True) as one:
            seen.append(str((one.getpeercert() or {}).get("subject")))
            one.sendall(b"hello")

    thread = Thread(target=broker)
    thread.start()
    try:
        near.settimeout(DEADLINE_SECONDS)
        with context.wrap_socket(near, server_hostname=host) as client:
            # With TLS 1.3 a client hears only now that its certificate was refused.
            client.recv(5)
    finally:
        near.close()
        thread.join()
        far.close()
    return seen[0] if seen else ""


def test_kafka_is_believed_by_the_configured_authority(
    authority: Authority, stranger: Authority
) -> None:
    broker, me = authority.identity("kafka.internal"), authority.identity("relay", "its password")
    mine: dict[str, Path | str] = {
        "KAFKA_SSL_CERT_FILE": me.certificate,
        "KAFKA_SSL_KEY_FILE": me.key,
        "KAFKA_SSL_KEY_PASSWORD": "its password",
    }

    def context(**given: Path | str) -> ssl.SSLContext:
        made = client_options(load_settings(kafka(**given)).kafka)["ssl_context"]
        assert isinstance(made, ssl.SSLContext)
        return made

    trusting = context(KAFKA_SSL_CA_FILE=authority.file, **mine)
    assert "relay" in greeted(trusting, "kafka.internal", broker, authority)
    with pytest.raises(ssl.SSLCertVerificationError):
        greeted(trusting, "another.internal", broker, authority)
    with pytest.raises(ssl.SSLCertVerificationError):
        greeted(
            context(KAFKA_SSL_CA_FILE=stranger.file, **mine), "kafka.internal", broker, authority
        )
    with pytest.raises((ssl.SSLError, OSError)):
        greeted(context(KAFKA_SSL_CA_FILE=authority.file), "kafka.internal", broker, authority)


@pytest.mark.parametrize("password", ["another", ""])
def test_files_that_kafka_can_t_use_are_told(authority: Authority, password: str) -> None:
    me = authority.identity("locked", "its password")
    given = {"KAFKA_SSL_CERT_FILE": me.certificate, "KAFKA_SSL_KEY_FILE": me.key}
    with pytest.raises(KafkaMisconfigured, match=r"KAFKA_SSL_\*: .*locked.key can't be used"):
        client_options(load_settings(kafka(**given, KAFKA_SSL_KEY_PASSWORD=password)).kafka)

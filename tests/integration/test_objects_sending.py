"""Sending parts over real HTTP: permission, exact sizes, torn connections, kills, memory."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import md5
from pathlib import Path

import httpx
import pytest

from infra.objects.port import NoSuchUpload, Part
from tests.integration.object_server import ObjectServer, folder_store, object_server
from tests.integration.part_receiver import sending
from tests.support import eventually, unavailable

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objects")


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[ObjectServer]:
    with object_server(root) as server:
        yield server


def head_of(url: str, *headers: str) -> bytes:
    path = url.split("/", 3)[3]
    return "\r\n".join((f"PUT /{path} HTTP/1.1", "Host: objects", *headers, "", "")).encode()


def read_status(connection: socket.socket) -> int:
    return int(connection.recv(4096).split()[1])


def test_a_part_needs_no_token_and_answers_its_etag(server: ObjectServer, root: Path) -> None:
    upload = sending(root)
    answer = httpx.put(upload.url(5, server.url), content=b"bytes")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["etag"] == f'"{md5(b"bytes").hexdigest()}"'


def test_an_empty_part_is_a_part(server: ObjectServer, root: Path) -> None:
    upload = sending(root)
    assert httpx.put(upload.url(0, server.url), content=b"").status_code == 200
    assert upload.parts() == [Part(1, md5(b"").hexdigest(), 0)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("size=5", "size=6"),
        ("partNumber=1", "partNumber=2"),
        ("uploadId=", "uploadId=f"),
        ("expires=", "expires=9"),
        ("signature=", "signature=0"),
        ("videos/", "videos/../videos/"),
        ("videos/", "videos%2F..%2F..%2Fetc%2F"),
        ("videos/", "other/"),
        ("?", "?nothing=left&was="),
    ],
)
def test_a_changed_url_gives_no_permission(
    server: ObjectServer, root: Path, old: str, new: str
) -> None:
    upload = sending(root)
    with server.connect() as connection:
        url = upload.url(5, server.url).replace(old, new)
        connection.sendall(head_of(url, "Content-Length: 5") + b"bytes")
        assert read_status(connection) == 403
    assert not upload.kept()


def test_a_get_url_gives_no_permission_to_put(server: ObjectServer, root: Path) -> None:
    upload = sending(root)
    url = upload.store.get_url(upload.key, "video/mp4", "a.mp4", server.url).url
    answer = httpx.put(url, content=b"bytes")
    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "url-signature-wrong"


def test_an_expired_url_gives_no_permission(server: ObjectServer, root: Path) -> None:
    upload = sending(root)
    past = folder_store(root, at=datetime.now(UTC) - timedelta(hours=2))
    url = past.part_url(upload.key, upload.id, 1, 5, server.url).url
    answer = httpx.put(url, content=b"bytes")
    assert (answer.status_code, answer.json()["type"]) == (403, "url-expired")
    assert not upload.kept()


@pytest.mark.parametrize(("announced", "status"), [(10 * MIB, 413), (4, 422)])
def test_another_content_length_is_refused_before_the_body(
    server: ObjectServer, root: Path, announced: int, status: int
) -> None:
    upload = sending(root)
    with server.connect() as connection:
        connection.sendall(head_of(upload.url(5, server.url), f"Content-Length: {announced}"))
        assert read_status(connection) == status
    assert not upload.kept()


def test_a_body_without_end_is_refused_at_its_first_byte_too_many(
    server: ObjectServer, root: Path
) -> None:
    upload = sending(root)
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 1024 * MIB:
            sent += MIB
            yield bytes(MIB)

    answer = httpx.put(upload.url(3 * MIB, server.url), content=endless())
    assert (answer.status_code, answer.json()["type"]) == (413, "part-too-large")
    assert sent < 64 * MIB
    assert not upload.kept()


def test_too_few_bytes_are_not_kept(server: ObjectServer, root: Path) -> None:
    upload = sending(root)
    answer = httpx.put(upload.url(2 * MIB, server.url), content=iter([bytes(MIB)]))
    assert (answer.status_code, answer.json()["type"]) == (422, "part-too-short")
    assert not upload.kept()


@pytest.mark.parametrize("half_close", [True, False])
def test_a_torn_connection_leaves_nothing_but_the_earlier_part(
    server: ObjectServer, root: Path, half_close: bool
) -> None:
    upload = sending(root)
    url = upload.url(4 * MIB, server.url)
    assert httpx.put(url, content=bytes(4 * MIB)).status_code == 200
    before = upload.parts()
    with server.connect() as connection:
        connection.sendall(head_of(url, f"Content-Length: {4 * MIB}") + b"x" * (2 * MIB))
        eventually(lambda: len(upload.spools()) == 1)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
            eventually(lambda: not upload.spools())
    eventually(lambda: not upload.spools())
    assert upload.parts() == before


def test_a_part_of_an_aborted_upload_is_refused(server: ObjectServer, root: Path) -> None:
    upload = sending(root)
    upload.abort()
    answer = httpx.put(upload.url(5, server.url), content=b"bytes")
    assert (answer.status_code, answer.json()["type"]) == (404, "upload-gone")
    with pytest.raises(NoSuchUpload):
        upload.parts()


def test_a_kill_in_the_middle_of_a_part_loses_only_that_part(tmp_path: Path) -> None:
    upload = sending(tmp_path)
    with object_server(tmp_path) as server:
        assert httpx.put(upload.url(5, server.url), content=b"first").status_code == 200
        with server.connect() as connection:
            url = upload.url(4 * MIB, server.url, number=2)
            connection.sendall(head_of(url, f"Content-Length: {4 * MIB}") + bytes(2 * MIB))
            eventually(lambda: any(spool.stat().st_size for spool in upload.spools()))
            server.process.kill()
            server.process.wait()
    assert len(upload.spools()) == 1
    with object_server(tmp_path) as server:
        content = bytes(4 * MIB)
        answer = httpx.put(upload.url(4 * MIB, server.url, number=2), content=content)
        assert answer.status_code == 200
    assert [(part.number, part.size) for part in upload.parts()] == [(1, 5), (2, 4 * MIB)]
    assert upload.spools() == []


def test_a_stalled_body_and_a_full_disk_end_cleanly(tmp_path: Path) -> None:
    upload = sending(tmp_path)
    with object_server(tmp_path, idle_seconds=0.3, file_limit=2 * MIB) as server:
        with server.connect() as connection:
            connection.sendall(head_of(upload.url(9, server.url), "Content-Length: 9") + b"half")
            assert read_status(connection) == 400
        answer = httpx.put(upload.url(3 * MIB, server.url), content=bytes(3 * MIB))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json()["type"] == "object-store-unavailable"
        assert str(tmp_path) not in answer.text
        assert not upload.kept()
        assert httpx.put(upload.url(MIB, server.url), content=bytes(MIB)).status_code == 200


def test_a_large_part_costs_no_memory(server: ObjectServer, root: Path) -> None:
    if not Path("/proc/self/status").exists():
        unavailable("the peak memory of a process is read from /proc, which only Linux has")
    upload = sending(root)
    size, block = 256 * MIB, bytes(MIB)
    httpx.put(upload.url(5, server.url), content=b"bytes")  # whatever is loaded on first use
    before = server.peak_memory()
    with server.connect() as connection:
        connection.sendall(head_of(upload.url(size, server.url), f"Content-Length: {size}"))
        for _ in range(size // MIB):
            connection.sendall(block)
        assert read_status(connection) == 200
    assert server.peak_memory() - before < 64 * MIB
    upload.abort()

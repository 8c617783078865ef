"""Checksums that come with a part, over real HTTP: all are checked, none is ignored."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from infra.objects.port import ALGORITHMS
from tests.integration.object_server import ObjectServer, object_server
from tests.integration.part_receiver import sending

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objects")


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[ObjectServer]:
    with object_server(root) as server:
        yield server


@pytest.mark.parametrize("header", ALGORITHMS)
def test_a_checksum_is_checked(server: ObjectServer, root: Path, header: str) -> None:
    upload = sending(root)
    size = 2 * MIB + 1
    url, content = upload.url(size, server.url), b"12" * MIB + b"3"

    def put(value: str) -> tuple[int, str]:
        answer = httpx.put(url, content=content, headers={header: value})
        return answer.status_code, answer.json()["type"] if answer.is_error else ""

    assert put(checksum(header, content[:-1])) == (422, "checksum-mismatch")
    assert put("no base64!") == (400, "checksum-unreadable")
    assert put(base64.b64encode(b"short").decode()) == (400, "checksum-unreadable")
    assert not upload.kept()
    assert put(checksum(header, content)) == (200, "")


def checksum(header: str, content: bytes) -> str:
    hashing = ALGORITHMS[header]()
    hashing.update(content)
    return base64.b64encode(hashing.digest()).decode()


def test_every_checksum_counts(server: ObjectServer, root: Path) -> None:
    upload = sending(root)
    url = upload.url(5, server.url)
    right = {header: checksum(header, b"bytes") for header in ALGORITHMS}
    for header in ALGORITHMS:
        headers = {**right, header: checksum(header, b"other")}
        assert httpx.put(url, content=b"bytes", headers=headers).status_code == 422
    assert not upload.kept()
    assert httpx.put(url, content=b"bytes", headers=right).status_code == 200


@pytest.mark.parametrize("algorithm", ["crc32c", "crc64nvme", "other"])
def test_a_checksum_that_can_not_be_checked_is_refused(
    server: ObjectServer, root: Path, algorithm: str
) -> None:
    upload = sending(root)
    headers = {f"x-amz-checksum-{algorithm}": "AAAAAA=="}
    answer = httpx.put(upload.url(5, server.url), content=b"bytes", headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (400, "checksum-unsupported")
    assert "content-md5, x-amz-checksum-crc32," in answer.json()["detail"]
    assert not upload.kept()

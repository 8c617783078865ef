"""The media port of the proxy: presigned requests reach the object store, and nothing else does."""
# ruff: noqa: ASYNC212 - a client and a proxy in other threads and processes; nothing else runs here

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from botocore.exceptions import ClientError

from infra.objects.s3 import S3Store
from tests.integration.object_upload import Upload, etag_of, ref
from tests.integration.s3_server import BUCKET, KEY_ID, REGION, S3Server, s3_server, s3_store
from tests.nginx import Proxy, running_nginx
from tests.support import DEADLINE_SECONDS, unused_port

pytestmark = pytest.mark.anyio

FIRST = b"first " * (5 * 1024 * 1024 // 6 + 1)
LAST = b"and last"
CREDENTIAL = f"{KEY_ID}/{datetime.now(UTC):%Y%m%d}/{REGION}/s3/aws4_request"
FORGED = (
    f"AWS4-HMAC-SHA256 Credential={CREDENTIAL}, SignedHeaders=host;x-amz-date, Signature={'0' * 64}"
)
# What CVE-2026-40344 and CVE-2026-41145 send: an access key that is known, and no secret.
UNSIGNED = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(server: S3Server, short_dir: Path) -> Iterator[Proxy]:
    away = f"127.0.0.1:{unused_port()}"
    upstreams = {"commands": away, "queries": away, "objects": server.url.removeprefix("http://")}
    with running_nginx(short_dir / "media-port", upstreams) as running:
        yield running


@pytest.fixture(scope="module")
def store(server: S3Server, proxy: Proxy) -> Iterator[S3Store]:
    opened = s3_store(server.place(public_endpoint_url=proxy.media_url))
    yield opened
    opened.close()


@pytest.fixture
def client(proxy: Proxy) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=proxy.media_url, trust_env=False, timeout=DEADLINE_SECONDS
    ) as client:
        yield client


@pytest.fixture
def upload(store: S3Store, client: httpx.Client) -> Upload:
    return Upload(store, f"videos/{uuid4()}", "", client)


def refused(answer: httpx.Response) -> bool:
    """Whether the proxy itself said no, as S3 would."""
    return answer.status_code == 403 and "Only presigned requests" in answer.text


def is_stored(server: S3Server, key: str) -> bool:
    try:
        server.client().head_object(Bucket=BUCKET, Key=key)
    except ClientError:
        return False
    return True


async def test_a_film_is_sent_in_parts_and_played(upload: Upload) -> None:
    await upload.begin()
    await upload.send({1: FIRST, 2: LAST})
    stored = await upload.complete(ref(1, FIRST), ref(2, LAST))
    assert stored.etag == etag_of(FIRST, LAST)
    assert upload.content() == FIRST + LAST
    answer = upload.get({"Range": "bytes=2-5"})
    assert (answer.status_code, answer.content) == (206, FIRST[2:6])
    assert answer.headers["Content-Type"] == "video/mp4"
    assert answer.headers["Content-Disposition"].startswith("inline; filename")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in answer.headers["Content-Security-Policy"]


async def test_a_part_needs_its_own_signature(upload: Upload, client: httpx.Client) -> None:
    await upload.begin()
    url = upload.part_url(1, len(LAST))
    (signature,) = re.findall("X-Amz-Signature=([0-9a-f]{64})", url)
    for other in ("", "0" * 63, "g" * 64, signature[:-1], f"{signature}0", signature.upper()):
        assert refused(client.put(url.replace(signature, other), content=LAST)), other
    assert refused(client.put(url.partition("?")[0], content=LAST))
    # One of the right form is the store's to judge.
    judged = client.put(url.replace(signature, "0" * 64), content=LAST)
    assert (judged.status_code, refused(judged)) == (403, False)
    assert client.put(url, content=LAST).status_code == 200


@pytest.mark.parametrize(
    "given",
    [
        {"Authorization": FORGED},
        {"Authorization": "Bearer a.b.c"},
        {"Authorization": FORGED, "X-Amz-Content-Sha256": UNSIGNED},
        {"X-Amz-Content-Sha256": UNSIGNED},
        {"X-Amz-Content-Sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"},
        {"x-amz-content-sha256": UNSIGNED.lower()},
        {"x-amz-copy-source": f"/{BUCKET}/videos/of-another"},
        {"x-amz-copy-source": f"/{BUCKET}/a", "x-amz-copy-source-range": "bytes=0-1"},
        {"X-Amz-Meta-Snowball-Auto-Extract": "true"},
    ],
    ids=lambda given: " ".join(f"{name}: {text[:24]}" for name, text in given.items()),
)
async def test_a_request_that_says_more_than_its_url_is_refused(
    upload: Upload, client: httpx.Client, given: dict[str, str]
) -> None:
    await upload.begin()
    url = upload.part_url(1, len(LAST))
    assert refused(client.put(url, content=LAST, headers=given))
    assert await upload.parts() == []
    assert client.put(url, content=LAST).status_code == 200


@pytest.mark.parametrize(
    "more",
    [
        f"X-Amz-Content-Sha256={UNSIGNED}",
        f"x-amz-content-sha256={UNSIGNED}",
        f"X%2DAmz-Content-Sha256={UNSIGNED}",
        f"X-Amz-Content-Sha256=UNSIGNED-PAYLOAD&X-Amz-Content-Sha256={UNSIGNED}",
        "x-amz-copy-source=%2Fmedia%2Fvideos%2Fof-another",
        "X-Amz-Meta-Snowball-Auto-Extract=true",
        "acl",
        "acl=",
        "policy=",
        "tagging=",
        "uploads=",
        "x-id=PutObject;acl=public-read",
    ],
)
async def test_a_url_that_says_more_than_presigned_ones_do_is_refused(
    upload: Upload, client: httpx.Client, more: str
) -> None:
    await upload.begin()
    url = upload.part_url(1, len(LAST))
    for told in (f"{url}&{more}", url.replace("?", f"?{more}&")):
        assert refused(client.put(told, content=LAST)), told
    assert await upload.parts() == []


async def test_headers_that_nginx_sees_once_of_twice_do_not_pass(
    upload: Upload, client: httpx.Client
) -> None:
    await upload.begin()
    twice = [("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD"), ("X-Amz-Content-Sha256", UNSIGNED)]
    client.put(upload.part_url(1, len(LAST)), content=LAST, headers=twice)
    # Chunked, it would be shorter than what was sent.
    assert [part.size for part in await upload.parts()] in ([], [len(LAST)])


@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH", "PROPFIND", "TRACE"])
async def test_other_methods_are_refused(
    upload: Upload, server: S3Server, client: httpx.Client, method: str
) -> None:
    await upload.begin()
    await upload.send({1: LAST})
    await upload.complete(ref(1, LAST))
    url = upload.store.get_url(upload.key, "video/mp4", "clip.mp4", "").url
    answer = client.request(method, url)
    assert answer.status_code in (403, 405), answer.text
    assert is_stored(server, upload.key)


@pytest.mark.parametrize("path", ["/", f"/{BUCKET}", f"/{BUCKET}/videos/x", "/minio/admin/v3/info"])
@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
async def test_nothing_is_there_without_a_signature(
    client: httpx.Client, path: str, method: str
) -> None:
    assert refused(client.request(method, path))


async def test_a_known_access_key_writes_nothing(client: httpx.Client, server: S3Server) -> None:
    """The attacks of the two advisories, as they were published."""
    key = f"videos/{uuid4()}"
    dated = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    claims = (
        f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={CREDENTIAL.replace('/', '%2F')}"
        f"&X-Amz-Date={dated}&X-Amz-Expires=600&X-Amz-SignedHeaders=host"
    )
    streamed = {"X-Amz-Content-Sha256": UNSIGNED, "X-Amz-Date": dated}
    body = b"4\r\nevil\r\n0\r\n\r\n"
    attacks: list[tuple[str, dict[str, str]]] = [
        (f"/{BUCKET}/{key}", {**streamed, "Authorization": FORGED}),
        (f"/{BUCKET}/{key}?{claims}", streamed),
        (f"/{BUCKET}/{key}?{claims}&X-Amz-Signature={'0' * 64}", streamed),
        (
            f"/{BUCKET}/{key}",
            {**streamed, "Authorization": FORGED, "X-Amz-Meta-Snowball-Auto-Extract": "true"},
        ),
    ]
    for url, headers in attacks:
        assert refused(client.put(url, content=body, headers=headers)), url
    assert not is_stored(server, key)


async def test_pages_of_other_origins_may_use_a_url(upload: Upload, client: httpx.Client) -> None:
    """A browser asks first; the proxy answers, and the store hears nothing of it."""
    asked = {"Origin": "https://studio.example.com", "Access-Control-Request-Method": "PUT"}
    answer = client.options("/anything", headers=asked)
    assert answer.status_code == 204
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "PUT" in answer.headers["Access-Control-Allow-Methods"]
    await upload.begin()
    sent = upload.put(1, LAST)
    assert sent.headers.get_list("Access-Control-Allow-Origin") == ["*"]
    assert "ETag" in sent.headers["Access-Control-Expose-Headers"]


async def test_a_url_that_has_expired_is_refused_by_the_store(
    server: S3Server, proxy: Proxy, client: httpx.Client
) -> None:
    place = server.place(public_endpoint_url=proxy.media_url)
    old = s3_store(place, datetime.now(UTC) - timedelta(days=1))
    answer = client.get(old.get_url(f"videos/{uuid4()}", "video/mp4", "a.mp4", "").url)
    old.close()
    assert (answer.status_code, refused(answer)) == (403, False)

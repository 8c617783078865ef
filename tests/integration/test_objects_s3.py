"""S3 as an object store: the contract, and what only a store behind a network can do wrong."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from infra import metrics
from infra.objects import s3
from infra.objects.port import (
    NoSuchUpload,
    ObjectStoreUnavailable,
    OpenUpload,
    PartMismatch,
    StoredObject,
)
from infra.objects.s3 import THREADS, S3Store
from infra.settings.adapters import ObjectSettings
from tests.integration.object_store_contract import FIRST, LAST, ObjectStoreContract
from tests.integration.object_upload import Upload, etag_of, ref
from tests.integration.s3_faults import Fault, passage
from tests.integration.s3_server import BUCKET, S3Server, s3_server, s3_store
from tests.support import until

# An ordinary call waits so long for an answer, and asks three times.
ORDINARY_SECONDS = 30.0

pytestmark = pytest.mark.anyio

Open = Callable[..., S3Store]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture(scope="module")
def open_store() -> Iterator[Open]:
    """Opens stores that last as long as the tests here: making one takes a fifth of a second."""
    opened: list[S3Store] = []

    def open_one(place: ObjectSettings, at: datetime | None = None) -> S3Store:
        opened.append(s3_store(place, at))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture(scope="module")
def shared(server: S3Server, open_store: Open) -> S3Store:
    return open_store(server.place())


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture
def upload(shared: S3Store, client: httpx.Client) -> Upload:
    return Upload(shared, a_key(), "", client)


class TestS3(ObjectStoreContract):
    @pytest.fixture
    def store(self, shared: S3Store) -> S3Store:
        return shared

    @pytest.fixture
    def base_url(self) -> str:
        return "http://unused.example"


async def test_what_lies_in_the_bucket_is_nothing_that_a_browser_would_show(
    server: S3Server, upload: Upload
) -> None:
    await upload.begin()
    await upload.send({1: LAST})
    await upload.complete(ref(1, LAST))
    found = server.client().head_object(Bucket=BUCKET, Key=upload.key)
    assert found["ContentType"] == "application/octet-stream"
    assert found["ContentDisposition"] == "attachment"


def a_key() -> str:
    return f"videos/{uuid4()}"


def status(client: httpx.Client, method: str, url: str, content: bytes = b"") -> int:
    return client.request(method, url, content=content).status_code


async def faulty(server: S3Server, open_store: Open, client: httpx.Client, url: str) -> Upload:
    """An upload of one part that is all there; control goes by way of `url`, bytes directly."""
    place = server.place(endpoint_url=url, public_endpoint_url=server.url)
    upload = Upload(open_store(place), a_key(), "", client)
    await upload.begin()
    await upload.send({1: LAST})
    return upload


@pytest.mark.parametrize(
    ("faults", "asked"),
    [
        ([Fault.LOST], 2),
        ([Fault.LOST, Fault.LOST, Fault.LOST], 3),
        ([Fault.BROKEN], 2),
        ([Fault.REFUSED], 2),
        ([Fault.REFUSED, Fault.LOST], 3),
    ],
)
async def test_a_completion_is_found_out_whatever_became_of_its_answer(
    server: S3Server, open_store: Open, client: httpx.Client, faults: list[Fault], asked: int
) -> None:
    with passage(server.url, *faults) as way:
        upload = await faulty(server, open_store, client, way.url)
        expected = StoredObject(upload.key, len(LAST), etag_of(LAST))
        assert await upload.complete(ref(1, LAST)) == expected
        assert way.completions == asked
        assert await upload.complete(ref(1, LAST)) == expected
    assert upload.content() == LAST


async def test_an_error_inside_a_200_is_an_error_and_leaves_the_upload(
    server: S3Server, open_store: Open, client: httpx.Client
) -> None:
    with passage(server.url, *[Fault.REFUSED] * 3) as way:
        upload = await faulty(server, open_store, client, way.url)
        with pytest.raises(ObjectStoreUnavailable) as caught:
            await upload.complete(ref(1, LAST))
        assert "InternalError" in caught.value.cause
        assert await upload.store.head(upload.key) is None
        assert len(await upload.parts()) == 1
        assert (await upload.complete(ref(1, LAST))).etag == etag_of(LAST)


async def test_a_forgotten_upload_is_known_by_its_object(
    server: S3Server, open_store: Open, client: httpx.Client
) -> None:
    with passage(server.url) as way:
        upload = await faulty(server, open_store, client, way.url)
        first = await upload.complete(ref(1, LAST))
        way.faults += [Fault.GONE, Fault.GONE]
        assert await upload.complete(ref(1, LAST)) == first
        with pytest.raises(PartMismatch):
            await upload.complete(ref(1, b"other"))
        assert way.completions == 3
    assert upload.content() == LAST


async def test_a_rival_who_completes_between_two_looks(
    server: S3Server,
    open_store: Open,
    client: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with passage(server.url, *[Fault.REFUSED] * 3) as way:
        ours = await faulty(server, open_store, client, way.url)

        def and_then_the_rival(look: Callable[..., Any]) -> Callable[..., Any]:
            def looked(*which: str) -> Any:
                found = look(*which)
                parts: Any = {"Parts": [{"PartNumber": 1, "ETag": ref(1, LAST).etag}]}
                server.client().complete_multipart_upload(
                    Bucket="media", Key=ours.key, UploadId=ours.id, MultipartUpload=parts
                )
                return found

            return looked

        for name in ("_head", "_list_parts"):
            look = getattr(ours.store, name)
            monkeypatch.setattr(ours.store, name, and_then_the_rival(look))
        assert (await ours.complete(ref(1, LAST))).etag == etag_of(LAST)


async def test_parts_that_are_too_small_are_named(upload: Upload) -> None:
    await upload.begin()
    await upload.send({1: b"small", 2: FIRST, 3: LAST})
    with pytest.raises(PartMismatch) as caught:
        await upload.complete(ref(1, b"small"), ref(2, FIRST), ref(3, LAST))
    assert (caught.value.missing, caught.value.wrong) == ((), (1,))


async def test_all_pages_of_parts_are_read(upload: Upload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PAGE", 2)
    await upload.begin()
    await upload.send({number: b"%d" % number for number in range(1, 6)})
    assert [part.number for part in await upload.parts()] == [1, 2, 3, 4, 5]


async def test_nobody_is_asked_about_an_empty_upload_id(
    server: S3Server, open_store: Open, free_port: int
) -> None:
    # `DELETE /key?uploadId=` might well delete the object.
    away = open_store(server.place(endpoint_url=f"http://127.0.0.1:{free_port}"))
    await away.abort(a_key(), "")
    with pytest.raises(NoSuchUpload):
        await away.list_parts(a_key(), "")


async def test_a_part_of_another_size_is_refused(upload: Upload, client: httpx.Client) -> None:
    await upload.begin()
    url = upload.part_url(1, len(LAST))
    for other in (LAST + b".", LAST[:-1], b""):
        assert status(client, "PUT", url, other) == 403
    assert await upload.parts() == []
    assert status(client, "PUT", url, LAST) == 200


async def test_a_url_serves_only_what_it_was_made_for(upload: Upload, client: httpx.Client) -> None:
    await upload.begin()
    url = upload.part_url(1, len(LAST))
    others = (url.replace("partNumber=1", "partNumber=2"), url.replace(upload.key, a_key()))
    assert [status(client, "PUT", other, LAST) for other in others] == [403, 403]
    assert status(client, "GET", url) == 403


async def test_a_url_expires(server: S3Server, open_store: Open, client: httpx.Client) -> None:
    early = open_store(server.place(), datetime.now(UTC) - timedelta(hours=1, seconds=2))
    upload = Upload(early, a_key(), "", client)
    await upload.begin()
    assert upload.put(1, LAST).status_code == 403


async def test_a_store_that_is_away_is_told_to_operators_only(
    server: S3Server, open_store: Open, free_port: int
) -> None:
    store = open_store(server.place(endpoint_url=f"http://127.0.0.1:{free_port}"))
    before = metrics.value("backlot_object_store_failures_total")
    with pytest.raises(ObjectStoreUnavailable) as caught:
        await store.check()
    assert f"127.0.0.1:{free_port}" in caught.value.cause
    assert "S3_ENDPOINT_URL" in caught.value.cause
    assert "127.0.0.1" not in str(caught.value)
    assert metrics.value("backlot_object_store_failures_total") == before + 1


async def test_readiness_does_not_wait_for_a_store_that_hangs(
    server: S3Server, open_store: Open
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        store = open_store(server.place(endpoint_url=f"http://127.0.0.1:{mute.getsockname()[1]}"))
        begun = time.monotonic()
        with pytest.raises(ObjectStoreUnavailable):
            await store.check()
        assert time.monotonic() - begun < ORDINARY_SECONDS


async def test_calls_do_not_queue_behind_a_store_that_hangs(
    shared: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[bool] = []
    answered = threading.Event()

    def hang() -> None:
        begun.append(True)
        answered.wait()

    hanging = [asyncio.create_task(shared._run(hang)) for _ in range(THREADS)]
    try:
        await until(lambda: len(begun) == THREADS)
        monkeypatch.setattr(s3, "PATIENCE", 0.05)
        asked = asyncio.create_task(shared.check())
        await asyncio.sleep(0.1)
    finally:
        answered.set()
    with pytest.raises(ObjectStoreUnavailable) as caught:
        await asked
    assert "hung" in caught.value.cause
    monkeypatch.undo()
    await asyncio.gather(*hanging)
    await shared.check()


async def test_a_bucket_that_is_not_there(server: S3Server, open_store: Open) -> None:
    store = open_store(server.place(bucket="elsewhere"))
    with pytest.raises(ObjectStoreUnavailable) as caught:
        store.probe()
    assert "no such bucket" in caught.value.cause
    assert "S3_BUCKET" in caught.value.cause


async def test_all_pages_of_uploads_are_read_and_foreign_keys_left_out(
    server: S3Server, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PAGE", 1)
    await upload.begin()
    server.client().create_multipart_upload(Bucket="media", Key="videos/of-somebody-else")
    listed = await upload.store.list_uploads(datetime.now(UTC) + timedelta(minutes=1))
    assert OpenUpload(upload.key, upload.id) in listed
    assert all("somebody" not in one.key for one in listed)

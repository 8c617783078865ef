"""Abandoned uploads end once and leave nothing, whoever runs the job and wherever bytes lie."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fakeredis import FakeServer
from structlog.testing import capture_logs

from domain.model import Origin
from domain.upload import object_key
from engine.schedule import run_job
from infra import metrics
from infra.objects.folder import FolderStore
from infra.objects.fragments import Fragment
from infra.objects.port import NoSuchUpload, ObjectStore, ObjectStoreUnavailable
from infra.objects.s3 import S3Store
from infra.redlock import LockTaken
from projections.catalog import Catalog
from tests.integration.buses import record
from tests.integration.event_log import recording
from tests.integration.expiry_support import LATER, LONGEST, NOW, Place, gone, run, send
from tests.integration.projection_support import hosting
from tests.integration.s3_server import BUCKET, S3Server, s3_server, s3_store
from tests.support import ended, eventually
from workers.uploads import expiry_job

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> Iterator[S3Store]:
    """The store of all tests here: to make one takes a fifth of a second."""
    opened = s3_store(s3.place())
    yield opened
    opened.close()


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param == "folder":
        folder = FolderStore(tmp_path, b"s" * 32, timedelta(hours=1), lambda: datetime.now(UTC))
        asyncio.run(folder.recover())
        yield folder
    else:
        server: S3Server = request.getfixturevalue("s3")
        yield request.getfixturevalue("bucket")
        # To the next test, with a log of its own, they would belong to nobody.
        for left in server.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads", ()):
            server.client().abort_multipart_upload(
                Bucket=BUCKET, Key=left["Key"], UploadId=left["UploadId"]
            )


@pytest.fixture
async def place(database_url: str, store: ObjectStore) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        recorder = stack.enter_context(recording(database_url))
        stack.enter_context(hosting(database_url, Catalog()))
        yield Place(database_url, store, recorder, FakeServer(version=(7, 4)), stack)


async def test_an_idle_upload_expires_with_its_parts(place: Place) -> None:
    upload, empty = await place.start(), await place.start()
    await send(place.store, upload)
    counted = metrics.value("backlot_uploads_tidied_total", how="expired")
    assert await run(place.job(), place) == {"expired": 2}
    for one in (upload, empty):
        assert place.history(one) == ["started", "expired"]
        assert await gone(place.store, one)
    assert metrics.value("backlot_uploads_tidied_total", how="expired") == counted + 2
    assert await run(place.job(), place) == {}


async def test_what_arrived_within_the_time_keeps_an_upload(place: Place) -> None:
    upload, young = await place.start(), await place.start(NOW - timedelta(days=6))
    await send(place.store, upload)
    assert await run(place.job(NOW), place) == {}
    assert place.history(upload) == place.history(young) == ["started"]
    assert len(await place.store.list_parts(upload.object_key, upload.store_upload_id)) == 1


async def test_fragments_keep_an_upload_and_go_with_it(place: Place) -> None:
    upload, stray, writer = await place.start(), object_key(uuid4()), place.store.writer
    for key in (upload.object_key, stray):
        await writer.write_fragment(key, Fragment(1, 0, 1), BytesIO(b"x"))
    assert await run(place.job(NOW), place) == {}
    assert await run(place.job(), place) == {"expired": 1}
    assert await writer.list_fragments(upload.object_key) == []
    # A request that raced with the end of its upload left it; by then no upload can be that old.
    assert await writer.list_fragments(stray) == [Fragment(1, 0, 1)]
    await run(place.job(LATER + LONGEST), place)
    assert await writer.list_fragments(stray) == []


async def test_an_upload_that_never_ends_expires_by_its_age(place: Place) -> None:
    endless = await place.start(NOW - timedelta(days=30))
    long = await place.start(NOW - timedelta(days=29))
    for upload in (endless, long):
        await send(place.store, upload)
    # Whatever arrives a moment before.
    job = place.job(NOW + timedelta(hours=1), longest=timedelta(days=30))
    assert await run(job, place) == {"expired": 1}
    assert place.history(endless) == ["started", "expired"]
    assert await gone(place.store, endless)
    assert place.history(long) == ["started"]


async def test_a_video_stays(place: Place) -> None:
    upload = await place.start()
    stored = await place.store.complete(
        upload.object_key, upload.store_upload_id, [await send(place.store, upload)]
    )
    upload.complete(stored.size, stored.etag, Origin("ann", NOW, "correlation", "causation"))
    record(place.recorder, upload)
    assert await run(place.job(), place) == {}
    assert await place.store.head(upload.object_key) == stored


async def test_a_completion_without_its_event_is_finished(place: Place) -> None:
    upload = await place.start()
    stored = await place.store.complete(
        upload.object_key, upload.store_upload_id, [await send(place.store, upload)]
    )
    assert await run(place.job(), place) == {"finished": 1}
    assert place.history(upload) == ["started", "completed"]
    assert await place.store.head(upload.object_key) == stored


async def test_what_the_store_gave_up_by_itself_expires(place: Place) -> None:
    upload = await place.start()
    await place.store.abort(upload.object_key, upload.store_upload_id)
    assert await run(place.job(), place) == {"expired": 1}
    assert place.history(upload) == ["started", "expired"]


async def test_what_belongs_to_no_upload_is_swept(place: Place) -> None:
    key = object_key(uuid4())
    orphan = await place.store.begin(key)
    assert await run(place.job(NOW + timedelta(days=1)), place) == {}
    assert await run(place.job(), place) == {"swept": 1}
    with pytest.raises(NoSuchUpload):
        await place.store.list_parts(key, orphan)


async def test_what_an_abort_left_is_swept(place: Place) -> None:
    upload = await place.start()
    upload.abort(Origin("ann", NOW, "correlation", "causation"))
    record(place.recorder, upload)
    assert await run(place.job(), place) == {"swept": 1}
    assert await gone(place.store, upload)


async def test_one_replica_at_a_time_is_at_it(place: Place) -> None:
    uploads = [await place.start() for _ in range(10)]
    place.projected()
    outcomes: list[Any] = await asyncio.gather(
        *(place.job().run() for _ in range(3)), return_exceptions=True
    )
    assert Counter(map(type, outcomes)) == {Counter: 1, LockTaken: 2}
    assert [place.history(upload) for upload in uploads] == [["started", "expired"]] * 10


async def test_two_replicas_at_once_would_do_no_harm(place: Place) -> None:
    uploads = [await place.start() for _ in range(10)]
    place.projected()
    # Each with a Redis of its own, so that both hold every lock.
    servers = [FakeServer(version=(7, 4)) for _ in range(2)]
    done = await asyncio.gather(*(place.job(redis=server).run() for server in servers))
    assert sum(counts["expired"] for counts in done) == 10
    assert [place.history(upload) for upload in uploads] == [["started", "expired"]] * 10


async def test_an_upload_that_is_just_being_ended_is_left_alone(place: Place) -> None:
    upload = await place.start()
    async with place.locks().hold(f"upload:finalize:{upload.id}", 60.0):
        assert await run(place.job(), place) == {}
    assert place.history(upload) == ["started"]


async def test_one_that_nobody_can_handle_does_not_keep_the_others(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = [await place.start() for _ in range(3)]
    job, broken = place.job(), min(uploads, key=lambda upload: upload.id)
    arrival = place.store.last_arrival

    async def last_arrival(key: str, store_upload_id: str) -> datetime | None:
        if key == broken.object_key:
            raise ValueError("nobody expected this")
        return await arrival(key, store_upload_id)

    monkeypatch.setattr(place.store, "last_arrival", last_arrival)
    with capture_logs() as logs:
        assert await run(job, place) == {"expired": 2, "failed": 1}
    assert [line["upload"] for line in logs if line["event"] == "upload_not_tidied"] == [
        str(broken.id)
    ]


async def test_the_job_goes_on_after_outages_and_defects(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await place.start()
    place.projected()
    job, troubles = place.job(), [ObjectStoreUnavailable("away"), ValueError("a defect")]
    find = place.store.list_uploads

    async def list_uploads(older_than: datetime) -> Any:
        if troubles:
            raise troubles.pop(0)
        return await find(older_than)

    monkeypatch.setattr(place.store, "list_uploads", list_uploads)
    before = {how: runs(how) for how in ("postponed", "broke", "done")}
    with capture_logs() as logs:
        task = asyncio.create_task(run_job(expiry_job(job, 0.01)))
        await asyncio.to_thread(eventually, lambda: runs("done") > before["done"])
        await ended(task)
    assert (runs("postponed"), runs("broke")) == (before["postponed"] + 1, before["broke"] + 1)
    told = [line["event"] for line in logs if line["log_level"] in ("warning", "error")]
    assert told == ["expiry_postponed", "expiry_broke"]
    assert place.history(upload) == ["started", "expired"]


def runs(how: str) -> float:
    return metrics.value("backlot_expiry_runs_total", outcome=how)

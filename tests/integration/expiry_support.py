"""A log, its read model, a store and the jobs of replicas, to see abandoned uploads end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
from fakeredis import FakeServer

from domain.model import Origin
from domain.upload import Upload, object_key
from engine.command_bus import CommandBus
from engine.event_store import GroupCommitRecorder
from infra.objects.folder import FolderStore
from infra.objects.port import NoSuchUpload, ObjectStore, PartRef
from infra.redis import embedded_redis
from infra.redlock import Redlock
from projections.catalog import Catalog
from tests.integration.buses import decided, record
from tests.integration.event_log import logged, recording, rows
from tests.support import DEADLINE_SECONDS, eventually
from workers.uploads import KEPT, Expiry

IDLE = timedelta(days=7)
# What these uploads don't reach, unless a test says so.
LONGEST = timedelta(days=365)
NOW = datetime.now(UTC)
# However long ago this file was imported, what arrives now is idle by then.
LATER = NOW + IDLE + timedelta(hours=12)
CONTENT = b"all of it"


async def send(store: ObjectStore, upload: Upload, content: bytes = CONTENT) -> PartRef:
    """Its only part arrives now."""
    key, store_id = upload.object_key, upload.store_upload_id
    if isinstance(store, FolderStore):
        part = await store.put_part(key, store_id, 1, len(content), _chunks(content))
        return PartRef(1, part.etag)
    url = store.part_url(key, store_id, 1, len(content), "").url
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.put(url, content=content)
    return PartRef(1, answer.raise_for_status().headers["etag"])


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content


@dataclass
class Place:
    """A log with its read model, a store, and jobs as replicas have them."""

    database_url: str
    store: ObjectStore
    recorder: GroupCommitRecorder
    redis: FakeServer
    stack: AsyncExitStack

    async def start(self, started_at: datetime = NOW - timedelta(days=30)) -> Upload:
        """An upload of one part that is under way."""
        upload_id = uuid4()
        upload = Upload.blank(upload_id)
        upload.start(
            Origin("ann", started_at, "correlation", "causation"),
            title="Rain",
            filename="rain.mp4",
            content_type="video/mp4",
            size_bytes=len(CONTENT),
            description=None,
            category=None,
            part_size_bytes=len(CONTENT),
            object_key=object_key(upload_id),
            store_upload_id=await self.store.begin(object_key(upload_id)),
        )
        record(self.recorder, upload)
        return upload

    def job(
        self,
        at: datetime = LATER,
        *,
        redis: FakeServer | None = None,
        longest: timedelta = LONGEST,
    ) -> Expiry:
        """A replica's job, at this time, with a bus and a connection of its own."""
        recorder = self.stack.enter_context(recording(self.database_url))
        bus = CommandBus(recorder)
        self.stack.push_async_callback(bus.close)
        return Expiry(
            bus=bus,
            objects=self.store,
            locks=self.locks(redis),
            catalog=Catalog(),
            database_url=self.database_url,
            idle=IDLE,
            longest=longest,
            clock=lambda: at,
        )

    def locks(self, redis: FakeServer | None = None) -> Redlock:
        client = embedded_redis(redis or self.redis)
        self.stack.push_async_callback(client.aclose)
        return Redlock([client], node_timeout=DEADLINE_SECONDS)

    def projected(self) -> None:
        """Return once the read model has seen everything."""
        head = max(logged(self.database_url), default=0)
        position = "SELECT position FROM backlot_checkpoints"
        eventually(lambda: rows(self.database_url, position) == [(head,)])

    def history(self, upload: Upload) -> list[str]:
        return decided(self.database_url, upload.id)


async def run(job: Expiry, place: Place) -> dict[str, int]:
    """What one run did, without what it left as it was."""
    place.projected()
    done = await job.run()
    del done[KEPT]
    return dict(done)


async def gone(store: ObjectStore, upload: Upload) -> bool:
    """Whether the store knows neither the upload nor its object."""
    try:
        await store.list_parts(upload.object_key, upload.store_upload_id)
    except NoSuchUpload:
        return await store.head(upload.object_key) is None
    return False

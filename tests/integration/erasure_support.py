"""A log, its persons, a store and a Redis, in which somebody has done things; and their erasure."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

from fakeredis import FakeServer
from redis.asyncio import Redis

from commands.erasure import RequestForgetting
from domain.comment import Comment
from domain.model import Aggregate, Origin
from domain.moderation import Hold, HoldCause
from domain.person import VideosFate, stream_id
from domain.upload import Upload, object_key
from engine.command_bus import CommandBus
from engine.connections import ThreadedConnection, connect, connected
from engine.erasures import FENCED, Erasure, find_erasure
from engine.event_store import GroupCommitRecorder
from engine.inspection.index import Audit
from engine.installation import install
from engine.log import MAPPER
from engine.persons import Persons
from engine.seals.proofs import NO_PROOFS
from infra.key_encryption import GivenKey
from infra.objects.folder import FolderStore
from infra.objects.port import PartRef
from infra.redis import embedded_redis
from tests.integration.event_log import recording
from tests.support import KEY_ENCRYPTION_KEY
from workers.erasure import Eraser
from workers.translator import PREFIX, digests

WEEK = timedelta(days=7)
NOTHING, LONG = timedelta(0), timedelta(hours=1)
CONTENT = b"a film"


@dataclass
class Purges:
    """Stands for the purge of the declared places: tells who was purged, and fails on request."""

    removed: Counter[str] = field(default_factory=lambda: Counter({"telemetry": 2}))
    of: list[str] = field(default_factory=list)
    fails_for: set[str] = field(default_factory=set)

    async def __call__(self, person: str) -> Counter[str]:
        if person in self.fails_for:
            raise ConnectionError("it is away")
        self.of.append(person)
        return self.removed if self.of.count(person) == 1 else Counter()


@dataclass
class Scene:
    """Everything that a process stands on which forgets persons."""

    database_url: str
    recorder: GroupCommitRecorder
    bus: CommandBus
    persons: Persons
    objects: FolderStore
    redis: Redis
    conn: ThreadedConnection
    purges: Purges = field(default_factory=Purges)

    def eraser(self, **options: Any) -> Eraser:
        """As one process has it."""
        given = {"proofs": NO_PROOFS, "grace": LONG, "settling": NOTHING, **options}
        return Eraser(
            self.bus,
            self.recorder,
            self.persons,
            self.objects,
            self.redis,
            self.purges,
            WEEK,
            VideosFate.DELETE,
            **given,
        )

    def save(self, *aggregates: Aggregate) -> None:
        """Record past every bus, as a batch that was decided before a fence came."""
        events = [event for each in aggregates for event in each.collect_events()]
        self.recorder.insert_events([MAPPER.to_stored_event(event) for event in events])

    def comment(self, author: str, text: str, *, held: bool = False) -> UUID:
        comment = Comment.blank(uuid4())
        hold = Hold(HoldCause.APPROVAL, self.persons.admit("the owner")) if held else None
        comment.post(uuid4(), text, by(author), hold)
        self.save(comment)
        return comment.id

    async def upload(self, owner: str, *, completed: bool = True) -> UUID:
        upload = Upload.blank(uuid4())
        key = object_key(upload.id)
        store_upload_id = await self.objects.begin(key)
        upload.start(
            by(owner),
            title="Rain",
            filename="rain.mp4",
            content_type="video/mp4",
            size_bytes=len(CONTENT),
            description="Loud",
            category=None,
            part_size_bytes=len(CONTENT),
            object_key=key,
            store_upload_id=store_upload_id,
        )
        part = await self.objects.put_part(key, store_upload_id, 1, len(CONTENT), chunks(CONTENT))
        if completed:
            stored = await self.objects.complete(key, store_upload_id, [PartRef(1, part.etag)])
            upload.complete(stored.size, stored.etag, by(owner))
        self.save(upload)
        return upload.id

    async def cached(self, text: str) -> str:
        """The key of a translation of this text, which is cached."""
        (digest,) = digests([text])
        await self.redis.set(f"{PREFIX}{digest}:some-model:de", b"{}")
        return f"{PREFIX}{digest}:some-model:de"

    async def ask(self, person: str, videos: VideosFate = VideosFate.DELETE) -> None:
        """Fence the person, and have the request recorded, as the route does."""
        self.persons.fence(person)
        command = RequestForgetting(person, person, videos, uuid4(), WEEK)
        await self.bus.execute(command, actor=person, correlation_id="correlation")

    async def erasure(self, person: str) -> Erasure:
        found = await self.conn.do(find_erasure, person)
        assert found is not None
        return found

    def history(self, stream: UUID) -> list[str]:
        """The kinds of events in a stream, and who recorded the last one."""
        return [event.TOPIC for event in self.events(stream)]

    def events(self, stream: UUID) -> Sequence[Aggregate.Event]:
        rows, *_ = self.recorder.fetch([(stream, 0)], (), lambda _: None)
        return [MAPPER.decode(*row) for row in rows]

    def told(self, person: str) -> Sequence[Aggregate.Event]:
        """What is on record about the forgetting of a person."""
        return self.events(stream_id(person))


async def chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content


def by(actor: str) -> Origin:
    return Origin(actor, datetime.now(UTC), "correlation", "causation")


@asynccontextmanager
async def scene(database_url: str, folder: Path) -> AsyncIterator[Scene]:
    """An empty one; what is recorded meanwhile is encrypted."""
    async with AsyncExitStack() as stack:
        recorder = stack.enter_context(recording(database_url))
        with connect(database_url, "test") as installing:
            install(installing, [Audit()])
        persons = Persons(database_url, GivenKey(KEY_ENCRYPTION_KEY))
        stack.callback(persons.close)
        persons.open()
        stack.enter_context(patch.object(MAPPER, "ciphers", persons))
        redis = embedded_redis(FakeServer())
        stack.push_async_callback(redis.aclose)
        objects = FolderStore(folder, b"s" * 32, timedelta(hours=1), lambda: datetime.now(UTC))
        bus = CommandBus(recorder, fenced=FENCED)
        stack.push_async_callback(bus.close)
        conn = await stack.enter_async_context(connected(database_url, "test"))
        yield Scene(database_url, recorder, bus, persons, objects, redis, conn)

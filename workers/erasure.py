"""Forgets persons, step by step, from the fence to the event that says that it is done.

One process does it at a time. Each step can be repeated, and is, where its process dies in between.
What was under way when the fence came may still leave something behind: so there is a pause, and
everything is looked for once more before a person counts as forgotten, and for days after that.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psycopg
import structlog
from eventsourcing.persistence import MapperDeserialisationError, PersistenceError
from redis import RedisError
from redis.asyncio import Redis

from commands.erasure import (
    EraseComment,
    EraseUpload,
    FindForgetting,
    FinishForgetting,
    RequestForgetting,
)
from domain.comment import Comment
from domain.model import RESERVED_PREFIXES, SystemActor
from domain.person import VideosFate
from domain.upload import Upload
from engine import erasures
from engine.command_bus import Command, CommandBus
from engine.connections import ThreadedConnection, connected, in_thread, leading
from engine.erasures import Erasure, ErasureStep
from engine.event_store import GroupCommitRecorder
from engine.inspection.persons import begun_streams
from engine.log import MAPPER
from engine.persons import Persons
from engine.purge import purge
from engine.schedule import Job, Outage, Run
from engine.seals.forgotten_list import record_forgotten
from engine.seals.places import AnchorsUnusable
from engine.seals.proofs import Proofs
from infra.batcher import QueueFull
from infra.cancellation import together
from infra.metrics import counter, gauge
from infra.objects.fragments import drop_all
from infra.objects.port import ObjectStore, ObjectStoreUnavailable
from projections.recommendations.retention import drop_recommended
from workers.parts import Parts
from workers.translator import digests, drop_translations

log = structlog.get_logger(__name__)

R = TypeVar("R")

ACTOR = SystemActor.PRIVACY
JOB = "erasure"
NOBODY = f"{RESERVED_PREFIXES[1]}nobody"
"""The user to whom videos are left that are kept; no token can have that name."""

INTERVAL_SECONDS = 2.0
AFTER_FAILURE_SECONDS = 15.0
SWEEP_SECONDS = 3600.0
AT_ONCE = 256
OBJECTS_AT_ONCE = 8
# A request that was cut off between the fence and its events is made up for after so long.
GRACE = timedelta(seconds=60)
# Longer than a request takes, and than a process may go without hearing of a revocation.
SETTLING = timedelta(seconds=30)
# What comes late, from Kafka above all, comes within this time.
SWEPT = timedelta(days=8)

PASSING = (
    *(psycopg.Error, PersistenceError, RedisError),
    *(ObjectStoreUnavailable, AnchorsUnusable, QueueFull),
)
"""What goes by itself."""

ERASURES = gauge("backlot_erasures", "Persons whom the program is forgetting now.")
OLDEST = gauge(
    "backlot_erasure_oldest_seconds", "How long the person waits who has waited longest."
)
FAILURES = counter(
    "backlot_erasure_failures",
    "Steps of forgetting a person that failed, by step; each is tried again.",
    ("step",),
)
FORGOTTEN = counter("backlot_persons_forgotten", "Persons who were forgotten.")

Purge = Callable[[str], Awaitable[Counter[str]]]
"""Removes what features declare about a person, given the pseudonym; counts by part."""


@dataclass
class Eraser:
    """Forgets persons; `settling` is the pause before everything is looked for once more."""

    bus: CommandBus
    recorder: GroupCommitRecorder
    persons: Persons
    objects: ObjectStore
    redis: Redis
    purge: Purge
    lifetime: timedelta
    videos: VideosFate
    proofs: Proofs
    grace: timedelta
    settling: timedelta
    # Of the texts of those at hand, which can't be read any more once a key is destroyed.
    _texts: dict[str, frozenset[str]] = field(default_factory=dict)

    async def turn(self, conn: ThreadedConnection) -> float | None:
        """Forget whom it can now; return the seconds until the next turn, None for the usual ones.

        What fails for one person must not hold up the others. Raise psycopg.Error where the
        connection breaks.
        """
        found = await conn.do(erasures.open_erasures)
        ERASURES.set(len(found))
        OLDEST.set(max((each.waits.total_seconds() for each in found), default=0.0))
        pauses = [await self._forget(conn, each) for each in found]
        return min((pause for pause in pauses if pause is not None), default=None)

    async def _forget(self, conn: ThreadedConnection, erasure: Erasure) -> float | None:
        """Do one step after the other as far as it goes now; return the seconds until it may go on,
        None for the usual ones.
        """
        now: Erasure | None = erasure
        while now is not None and now.finished_at is None:
            try:
                removed = await self.do(conn, now)
            except Exception as error:  # noqa: BLE001 - it is told, and tried again
                await self._tell(conn, now, error)
                return AFTER_FAILURE_SECONDS
            if removed is None:
                return self._left_to_settle(now)
            log.info("erasure_step", person=now.pseudonym, step=now.step, **removed)
            await conn.do(erasures.advance, now, removed)
            now = await conn.do(erasures.find_erasure, now.pseudonym)
        return None

    def _left_to_settle(self, erasure: Erasure) -> float | None:
        """Return the seconds until the pause is over, where that is before the usual next turn."""
        if erasure.step is not ErasureStep.SETTLING:
            return None
        return min(INTERVAL_SECONDS, (self.settling - erasure.step_waits).total_seconds())

    async def _tell(self, conn: ThreadedConnection, erasure: Erasure, error: Exception) -> None:
        """Count a failure, where an operator looks for it."""
        about = {"person": erasure.pseudonym, "step": erasure.step}
        FAILURES.labels(erasure.step).inc()
        if isinstance(error, PASSING):
            told = " ".join(str(error).split())
            log.warning("erasure_step_failed", error=f"{type(error).__name__}: {told}", **about)
        else:
            log.error("erasure_step_failed", exc_info=error, **about)
        await conn.do(erasures.fail, erasure.pseudonym, type(error).__name__)

    async def do(self, conn: ThreadedConnection, erasure: Erasure) -> Counter[str] | None:
        """Do the present step; return what was removed, None where nothing follows now."""
        person = erasure.pseudonym
        match erasure.step:
            case ErasureStep.REQUEST:
                return await self._request(erasure)
            case ErasureStep.COMMENTS:
                await self._comments(conn, person)
            case ErasureStep.TEXTS:
                return await self._drop_texts(conn, person)
            case ErasureStep.VIDEOS:
                await self._uploads(conn, person)
            case ErasureStep.KEY:
                # First: a database that is restored from now on has to learn of it.
                await in_thread(record_forgotten, self.proofs, person, erasure.fenced_at)
                await in_thread(self.persons.destroy, person)
            case ErasureStep.PLACES:
                return await self._drop_recommended(conn, person) + await self.purge(person)
            case ErasureStep.SETTLING:
                return Counter() if erasure.step_waits >= self.settling else None
            case ErasureStep.FINISH:
                await self._finish(conn, erasure)
                return None
        return Counter()

    async def _request(self, erasure: Erasure) -> Counter[str] | None:
        """Have the request on record, which mostly comes right behind the fence."""
        person = erasure.pseudonym
        facts = await self._execute(person, FindForgetting(person))
        if not facts.is_requested:
            if erasure.waits < self.grace:
                return None
            asked = RequestForgetting(person, person, self.videos, uuid4(), self.lifetime)
            await self._execute(person, asked)
        return Counter()

    async def _comments(self, conn: ThreadedConnection, person: str) -> int:
        """Delete the person's comments, those that nobody sees too; return how many there were."""
        found = await conn.do(begun_streams, (Comment.Posted, Comment.Submitted), person)
        await self._execute_all(person, [EraseComment(each) for each in found])
        return len(found)

    async def _drop_texts(self, conn: ThreadedConnection, person: str) -> Counter[str]:
        """Drop what is cached under keys that are made from the person's texts."""
        found = await conn.do(begun_streams, (Comment.Posted, Comment.Submitted), person)
        self._texts[person] = await in_thread(self._digests, found)
        return await self._drop_translations(person)

    async def _drop_translations(self, person: str) -> Counter[str]:
        dropped = await drop_translations(self.redis, self._texts.get(person, frozenset()))
        return Counter({"redis.translations": dropped} if dropped else {})

    async def _drop_recommended(self, conn: ThreadedConnection, person: str) -> Counter[str]:
        """Drop what is cached for others and has titles of the person's videos, kept ones too.

        A language model that has worded it may have read what is not kept.
        """
        videos = await conn.do(begun_streams, (Upload.Started,), person)
        return +Counter({"redis.recommended": await drop_recommended(self.redis, videos)})

    def _digests(self, comments: Sequence[UUID]) -> frozenset[str]:
        found: set[str] = set()
        for some in _chunks(comments, AT_ONCE):
            rows, *_ = self.recorder.fetch([(each, 0) for each in some], (), lambda _: None)
            MAPPER.prepare((topic, state) for _, _, topic, state in rows)
            found |= digests(text for row in rows if (text := _text(*row)) is not None)
        return frozenset(found)

    async def _uploads(self, conn: ThreadedConnection, person: str) -> int:
        """End the person's uploads, and free what the store has of them; return how many."""
        facts = await self._execute(person, FindForgetting(person))
        heir = None
        if facts.videos is VideosFate.KEEP:
            heir = await in_thread(self.persons.admit, NOBODY)
        found = await conn.do(begun_streams, (Upload.Started,), person)
        asked = [EraseUpload(each, person, heir) for each in found]
        ended = [each for each in await self._execute_all(person, asked) if not each.kept]
        for some in _chunks(ended, OBJECTS_AT_ONCE):
            await together(*(self._drop(each.object_key, each.store_upload_id) for each in some))
        return len(found)

    async def _drop(self, key: str, store_upload_id: str) -> None:
        await self.objects.abort(key, store_upload_id)
        await drop_all(self.objects.writer, key)
        await self.objects.delete(key)

    async def _finish(self, conn: ThreadedConnection, erasure: Erasure) -> None:
        """Look for everything once more, and say that it is done."""
        person = erasure.pseudonym
        comments = await self._comments(conn, person)
        uploads = await self._uploads(conn, person)
        removed = await self._drop_translations(person) + await self.purge(person)
        removed += await self._drop_recommended(conn, person)
        # As many as there ever were: their texts can't be read any more.
        own = Counter(comments=comments, uploads=uploads)
        counts = dict(+(Counter(erasure.counts) + removed + own))
        counts = await self._execute(person, FinishForgetting(person, counts))
        await conn.do(erasures.finish, person, counts)
        self._texts.pop(person, None)
        FORGOTTEN.inc()
        log.info("person_forgotten", person=person, **counts)

    async def sweep(self, conn: ThreadedConnection) -> None:
        """Purge again what came late about those who were forgotten in the last days."""
        for person in await conn.do(erasures.finished_within, SWEPT):
            if removed := +(await self.purge(person)):
                log.info("erasure_swept", person=person, **removed)

    async def _execute(self, person: str, command: Command[R]) -> R:
        outcome = await self.bus.execute(command, actor=ACTOR, correlation_id=f"forget-{person}")
        return outcome.answer

    async def _execute_all(self, person: str, commands: Iterable[Command[R]]) -> list[R]:
        """Execute many, some at a time, each in one batch with others."""
        answers: list[R] = []
        for some in _chunks(list(commands), AT_ONCE):
            answers += await asyncio.gather(*(self._execute(person, each) for each in some))
        return answers


def _chunks(values: Sequence[R], size: int) -> Iterator[Sequence[R]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _text(stream_id: UUID, version: int, topic: str, state: bytes) -> str | None:
    """Return the text that an event of a comment brings; None where it can't be read."""
    try:
        return getattr(MAPPER.decode(stream_id, version, topic, state), "content", None)
    except MapperDeserialisationError as error:
        log.warning("erasure_text_unread", stream=str(stream_id), error=str(error))
        return None


def jobs(parts: Parts, bus: CommandBus) -> Iterator[Job]:
    """Forget whom it has to, and purge again, every hour, what came late about them."""
    eraser = Eraser(
        bus=bus,
        recorder=parts.recorder,
        persons=parts.persons,
        objects=parts.objects,
        redis=parts.redis,
        purge=partial(_purge, parts),
        lifetime=parts.authenticator.max_lifetime,
        videos=parts.settings.privacy.forget_videos,
        proofs=parts.proofs,
        grace=GRACE,
        settling=SETTLING,
    )
    outage = Outage("erasure_postponed", (psycopg.Error, PersistenceError))
    for name, every, work in (
        (JOB, INTERVAL_SECONDS, eraser.turn),
        (f"{JOB} sweep", SWEEP_SECONDS, eraser.sweep),
    ):
        session = partial(_session, parts.database_url, name, work)
        yield Job(name, every, session, outage)


async def _purge(parts: Parts, person: str) -> Counter[str]:
    async with (
        connected(parts.database_url, "purge") as main,
        connected(parts.analytics_url, "purge") as analytics,
    ):
        return await purge(parts.places, main, analytics, parts.redis, person)


@asynccontextmanager
async def _session(
    database_url: str, job: str, work: Callable[[ThreadedConnection], Awaitable[Any]]
) -> AsyncIterator[Run]:
    """Work while no other process does."""
    try:
        async with leading(database_url, job) as conn:
            yield partial(work, conn)
    finally:
        # Whoever leads now tells how many there are.
        ERASURES.set(0)
        OLDEST.set(0)

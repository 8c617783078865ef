"""Command buses on real PostgreSQL, and the few commands that their tests need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID, uuid4

from commands.likes import ChangeLike, Wish
from domain.model import Aggregate, Origin
from domain.upload import Upload
from domain.video_likes import VideoLikes, stream_id
from engine.command_bus import Aggregates, Command, CommandBus, Contended, Executed
from engine.event_store import GroupCommitRecorder, IdempotencyKey, StoredAnswer
from engine.log import EventMapper
from tests.integration.event_log import logged, pass_gate, recording

R = TypeVar("R")
ORIGIN = Origin("owner", datetime(2026, 11, 1, tzinfo=UTC), "correlation", "causation")
MAPPER = EventMapper()


@dataclass(frozen=True)
class Toggle(Command[bool]):
    """Toggles a stream of likes, and then perhaps gives up; stands on no video."""

    stream: UUID
    error: Exception | None = None

    def streams(self) -> Sequence[UUID]:
        return (self.stream,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> bool:
        likes = aggregates.get(VideoLikes, self.stream)
        likes.toggle(self.stream, origin.actor, origin)
        if self.error is not None:
            raise self.error
        return likes.liked


@dataclass(frozen=True)
class Look(Command[str]):
    """Touches no stream and records nothing."""

    def streams(self) -> tuple[()]:
        return ()

    def decide(self, aggregates: Aggregates, origin: Origin) -> str:
        return "seen"


def like(video: UUID, viewer: str, wish: Wish = Wish.LIKE) -> ChangeLike:
    return ChangeLike(video, viewer, wish)


def new_video(recorder: GroupCommitRecorder) -> UUID:
    """A completed upload, recorded."""
    upload = Upload.blank(uuid4())
    upload.start(
        ORIGIN,
        title="Rain",
        filename="rain.mp4",
        content_type="video/mp4",
        size_bytes=1,
        description=None,
        category=None,
        part_size_bytes=1,
        object_key="key",
        store_upload_id="id",
    )
    upload.complete(1, "etag", ORIGIN)
    record(recorder, upload)
    return upload.id


def record(recorder: GroupCommitRecorder, aggregate: Aggregate) -> None:
    """Record what the aggregate decided, past every bus."""
    recorder.insert_events([MAPPER.to_stored_event(event) for event in aggregate.collect_events()])


def decided(database_url: str, stream: UUID) -> list[str]:
    """The kinds of events in a stream, in order; fails when a version is missing."""
    events = [event for event in logged(database_url).values() if event.originator_id == stream]
    assert [event.originator_version for event in events] == [*range(1, len(events) + 1)]
    return [event.topic.split(".")[1] for event in events]


def alternating(count: int) -> list[str]:
    return (["liked", "unliked"] * count)[:count]


@asynccontextmanager
async def open_bus(recorder: GroupCommitRecorder, **options: Any) -> AsyncIterator[CommandBus]:
    bus = CommandBus(recorder, **options)
    try:
        yield bus
    finally:
        await bus.close()


async def execute(
    bus: CommandBus, command: Command[R], actor: str = "ann", key: IdempotencyKey | None = None
) -> Executed[R] | StoredAnswer:
    return await bus.execute_once(command, key, actor=actor, correlation_id="correlation")


async def execute_all(bus: CommandBus, commands: Sequence[Command[Any]]) -> list[Any]:
    """All at once, in one batch where it fits; outcomes and exceptions in their order."""
    tasks = [asyncio.create_task(execute(bus, command)) for command in commands]
    return list(await asyncio.gather(*tasks, return_exceptions=True))


def with_bus(
    recorder: GroupCommitRecorder,
    scenario: Callable[[CommandBus], Coroutine[Any, Any, R]],
    **options: Any,
) -> R:
    """Run a scenario on a bus of its own, closed at the end."""

    async def run() -> R:
        async with open_bus(recorder, **options) as bus:
            return await scenario(bus)

    return asyncio.run(run())


def hammer(database_url: str, video: UUID, viewers: int, toggles: int, retries: int) -> list[Any]:
    """Toggle for many viewers at once, in any process, once the gate is open.

    Gives for each toggle its stream and position, or the refusal.
    """

    async def viewer(bus: CommandBus, name: str) -> list[Any]:
        outcomes: list[Any] = []
        for _ in range(toggles):
            try:
                outcome = await execute(bus, like(video, name, Wish.TOGGLE), name)
                outcomes.append((stream_id(video, name), outcome.position))
            except Contended as error:
                outcomes.append(error)
        return outcomes

    async def all_viewers(bus: CommandBus) -> list[Any]:
        names = [f"viewer-{number}" for number in range(viewers)]
        pass_gate(database_url)
        return list(await asyncio.gather(*(viewer(bus, name) for name in names)))

    with recording(database_url) as recorder:
        nested = with_bus(recorder, all_viewers, retries=retries)
    return [outcome for outcomes in nested for outcome in outcomes]

"""A log with a video, and what translates its comments, for tests of a comment's task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID, uuid4

from fakeredis import FakeServer

from commands.translation import CommentText, FindCommentText
from engine.event_store import GroupCommitRecorder
from infra.redis import embedded_redis
from infra.settings import load_settings
from infra.tasks.queues import TaskOrigin
from tests.integration.buses import decided, execute, open_bus
from tests.integration.event_log import logged
from tests.integration.projection_support import Writer
from tests.openai_server import (
    OpenAIServer,
)
from workers.translation import CommentTranslation, open_translation

SPANISH = "¡Qué bonito es este vídeo, muchas gracias! https://example.org/a 🎬"
CALLS = "backlot_llm_calls_total"
ORIGIN = TaskOrigin("conversation", "cause")

Scenario = Callable[[CommentTranslation], Coroutine[Any, Any, None]]


class Desk:
    """A log with a video, and the tasks' part of the program on it."""

    def __init__(self, database_url: str, writer: Writer, provider: OpenAIServer) -> None:
        self.database_url, self.writer = database_url, writer
        self.provider = provider
        self.redis = FakeServer(version=(7, 4))
        self.video = writer.video().id
        self.settings: dict[str, str] = {"OPENAI_BASE_URL": provider.url}

    def comment(self, content: str = SPANISH, author: str = "bob") -> UUID:
        return self.writer.comment(self.video, author, content).id

    def run(self, *comments: UUID) -> None:
        """Run the tasks of these comments at once."""

        async def scenario(translation: CommentTranslation) -> None:
            await asyncio.gather(*(translation.run(comment, ORIGIN) for comment in comments))

        self.with_translation(scenario)

    def with_translation(self, scenario: Scenario) -> None:
        asyncio.run(self._with_translation(self.writer.recorder, scenario))

    async def _with_translation(self, recorder: GroupCommitRecorder, scenario: Scenario) -> None:
        settings = load_settings({"TRANSLATION_EDIT_SECONDS": "0", **self.settings})
        redis = embedded_redis(self.redis)
        async with (
            open_bus(recorder) as bus,
            open_translation(settings.translation, settings.llm, bus, redis) as translation,
        ):
            await scenario(translation)
        await redis.aclose()

    def kinds(self, comment: UUID) -> list[str]:
        return decided(self.database_url, comment)

    def last(self, comment: UUID) -> dict[str, Any]:
        stored = [e for e in logged(self.database_url).values() if e.originator_id == comment][-1]
        return vars(self.writer.mapper.to_domain_event(stored))

    def text(self, comment: UUID) -> CommentText | None:
        async def look() -> CommentText | None:
            async with open_bus(self.writer.recorder) as bus:
                found: Any = await execute(bus, FindCommentText(comment))
                answer: CommentText | None = found.answer
                return answer

        return asyncio.run(look())


def of_its_own(text: str) -> str:
    return f"{text} @{uuid4().hex}"

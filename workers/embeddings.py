"""Keeps an embedding of each video's text, for whoever looks for videos like others.

What is embedded is compared with the catalog by its digest, so that whatever was missed, in an
outage or before there was a model, is made up for in the next round.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import psycopg
import structlog

from engine.command_bus import CommandBus
from engine.connections import ThreadedConnection, connected, leading
from engine.schedule import Job, Outage, Run
from infra.llm.client import MAX_TEXTS, Embedder, make_embedder
from infra.llm.errors import BadAnswer, LanguageModelError, ProviderFailed, RejectedRequest
from infra.metrics import counter
from projections.catalog import Catalog
from projections.recommendations.embeddings import (
    Digested,
    Embedded,
    Text,
    forget_unlisted,
    outdated,
    page,
    prepare,
    put,
    texts_of,
)
from workers.parts import Parts

log = structlog.get_logger(__name__)

JOB = "embedding"
VIDEOS_AT_ONCE = 500
# A text that any model embeds; when that fails too, the others' content is not the reason.
PROBE = "A video."
LONGEST_PAUSE_SECONDS = 600.0

EMBEDDINGS = counter(
    "backlot_embeddings",
    "Texts of videos that were embedded (made), or that the provider does not take (rejected).",
    ("outcome",),
)
EMBEDDING_FAILURES = counter(
    "backlot_embedding_failures",
    "Times that embeddings could not be kept up to date, and it was tried later, by what failed.",
    ("step",),
)


@dataclass
class Upkeep:
    """Embeds what is new or has changed, round by round; a round goes on where the last failed.

    `catalog` is a connection to the read models, `kept` the active process's own to the analytics.
    """

    embedder: Embedder
    models: Catalog
    catalog: ThreadedConnection
    kept: ThreadedConnection
    # The position behind which a round goes on, and how many texts are sent at once.
    after: int = 0
    at_once: int = MAX_TEXTS

    async def lacking(self) -> str | None:
        """Have the table; or what the database lacks for it. Raises psycopg.Error."""
        return await self.kept.do(prepare, self.embedder.model, self.embedder.dimensions)

    async def run(self) -> int:
        """Do one round; return how many texts it dealt with.

        Raise LanguageModelError, psycopg.Error.
        """
        await self.kept.do(forget_unlisted)
        done = 0
        while videos := await self.catalog.do(page, self.models, self.after, VIDEOS_AT_ONCE):
            missing = await self.kept.do(outdated, videos)
            done += await self._embed([each for each in videos if each.video_id in missing])
            self.after = videos[-1].position
        self.after = 0
        return done

    async def _embed(self, videos: Sequence[Digested]) -> int:
        at = 0
        while batch := videos[at : at + self.at_once]:
            try:
                await self._embed_batch([each.video_id for each in batch])
            except ProviderFailed:
                # Ask for less the next time; a text that fails alone must not hold up the others.
                if len(batch) == 1:
                    self.after = batch[0].position
                self.at_once = max(len(batch) // 2, 1)
                raise
            at += len(batch)
            self.after = batch[-1].position
            self.at_once = min(2 * self.at_once, MAX_TEXTS)
        return len(videos)

    async def _embed_batch(self, videos: Sequence[UUID]) -> None:
        texts = await self.catalog.do(texts_of, self.models, videos)
        # None when they have all been removed since, or are not public any more.
        if texts:
            embedded = await self._vectors(texts)
            await self.kept.do(put, embedded)
            for each in embedded:
                EMBEDDINGS.labels("rejected" if each.rejected else "made").inc()

    async def _vectors(self, texts: Sequence[Text]) -> list[Embedded]:
        try:
            return await self._asked(texts)
        except (BadAnswer, RejectedRequest) as error:
            # Raises when it is the model, or what it is asked for, that is wrong.
            await self.embedder.embed([PROBE])
            return await self._apart(texts, error)

    async def _apart(self, texts: Sequence[Text], error: LanguageModelError) -> list[Embedded]:
        """Return what becomes of each of these texts, which the provider did not take together."""
        if len(texts) == 1:
            (text,) = texts
            log.warning("text_rejected", video_id=str(text.video_id), outcome=error.outcome)
            return [Embedded(text.video_id, text.digest, None, error.outcome)]
        found: list[Embedded] = []
        middle = len(texts) // 2
        for half in (texts[:middle], texts[middle:]):
            try:
                found += await self._asked(half)
            except (BadAnswer, RejectedRequest) as again:
                found += await self._apart(half, again)
        return found

    async def _asked(self, texts: Sequence[Text]) -> list[Embedded]:
        vectors = await self.embedder.embed([each.text for each in texts])
        return [
            Embedded(text.video_id, text.digest, vector)
            for text, vector in zip(texts, vectors, strict=True)
        ]


@dataclass
class Rounds:
    """Rounds of the upkeep while this process does the job; a failure is followed by a pause."""

    upkeep: Upkeep
    every: float
    told: str | None = None
    failures: int = 0

    async def run(self) -> float:
        """Do one round, and return the seconds until the next one. Raise psycopg.Error.

        Where the analytics' database can't have embeddings that is logged once.
        """
        lacking = await self.upkeep.lacking()
        if lacking is None:
            return await self._round()
        if lacking != self.told:
            log.warning("embeddings_unavailable", reason=lacking)
        self.told = lacking
        return LONGEST_PAUSE_SECONDS

    async def _round(self) -> float:
        try:
            done = await self.upkeep.run()
        except LanguageModelError as error:
            EMBEDDING_FAILURES.labels("provider").inc()
            log.warning("embedding_postponed", error=f"{type(error).__name__}: {error}")
            self.failures += 1
            # An eighth of the interval after the first failure, twice as much after each other.
            grown = self.every * 2.0 ** (min(self.failures, 21) - 4)
            return max(min(grown, LONGEST_PAUSE_SECONDS), error.retry_after or 0.0)
        log.debug("embedding_done", texts=done)
        self.failures = 0
        return self.every


def jobs(parts: Parts, bus: CommandBus) -> Iterator[Job]:
    """Keep the embeddings of the videos' texts, where a model for them is configured."""
    embedder = make_embedder(parts.settings.embeddings, parts.settings.llm, parts.redis)
    if embedder is not None:
        parts.closings.append(embedder.aclose)
        models, database_url = parts.models[Catalog], parts.database_url
        yield embedding_job(
            embedder, models, database_url=database_url, analytics_url=parts.analytics_url
        )


def embedding_job(
    embedder: Embedder, models: Catalog, *, database_url: str, analytics_url: str, every: float = 60
) -> Job:
    """Return the job that does round after round; one process at a time does."""

    @asynccontextmanager
    async def session() -> AsyncIterator[Run]:
        async with leading(analytics_url, JOB) as kept, connected(database_url, JOB) as catalog:
            yield Rounds(Upkeep(embedder, models, catalog, kept), every).run

    failures = EMBEDDING_FAILURES.labels("database")
    return Job(JOB, every, session, Outage("embedding_postponed", (psycopg.Error,), failures))

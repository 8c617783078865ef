"""What tests of embeddings share: a database of videos, and the job that embeds them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from engine.connections import connect, connected, leading
from engine.installation import install
from engine.schedule import run_job
from infra.llm.client import Embedder, make_embedder
from infra.llm.errors import LanguageModelError
from infra.settings import load_settings
from projections.analytics.schema import migrate
from projections.catalog import Catalog
from projections.recommendations.embeddings import nearest
from tests.integration.event_log import rows
from tests.openai_server import vector_of
from tests.support import ended
from workers.recommendations import EMBEDDING_JOB, EmbeddingUpkeep, embedding_job

MODEL, DIMENSIONS = "places", 16
KEPT = "SELECT video_id, rejected FROM analytics.embeddings"


class FakeEmbedder:
    """Places texts where the server of the tests does, and fails as it is told to."""

    def __init__(self, model: str = MODEL, dimensions: int = DIMENSIONS) -> None:
        self.model = model
        self.dimensions = dimensions
        self.calls: list[list[str]] = []
        self.fault: Callable[[Sequence[str]], LanguageModelError | None] = lambda _: None

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self.calls.append(list(texts))
        error = self.fault(texts)
        if error is not None:
            raise error
        return [vector_of(text, self.dimensions) for text in texts]

    async def aclose(self) -> None:
        """It has nothing to close."""

    @property
    def sent(self) -> list[str]:
        """All the texts that were sent, but for probes."""
        return [text for call in self.calls for text in call if text != "A video."]


class Shop:
    """Videos in the catalog and in the analytics of one database; each has a title at least."""

    def __init__(self, url: str, conn: Connection[TupleRow]) -> None:
        self.url, self._conn = url, conn
        self.catalog = Catalog()
        install(conn, [self.catalog])
        migrate(conn)
        self._position = 0

    def video(self, title: str, **values: Any) -> UUID:
        self._position += 1
        video_id = UUID(int=2**64 - self._position)
        given = {"title": title, "completed_position": self._position, **values}
        row = {
            "upload_id": video_id, "status": "completed", "owner": "ann", "filename": "f",
            "content_type": "video/mp4", "size_bytes": 1, "part_size_bytes": 1,
            "object_key": "k", "store_upload_id": "s", "started_at": "now",
        } | given  # fmt: skip
        names, marks = ", ".join(row), ", ".join(["%s"] * len(row))
        self._conn.execute(
            f"INSERT INTO catalog.uploads ({names}) VALUES ({marks})".encode(), [*row.values()]
        )
        self._conn.execute(
            "INSERT INTO analytics.videos (video_id, owner, completed_at) VALUES (%s, 'a', now())",
            [video_id],
        )
        return video_id

    def change(self, video_id: UUID, **values: Any) -> None:
        told = ", ".join(f"{name} = %s" for name in values)
        query = f"UPDATE catalog.uploads SET {told} WHERE upload_id = %s"
        self._conn.execute(query.encode(), [*values.values(), video_id])

    def show(self, video_id: UUID, visibility: str) -> None:
        self.change(video_id, visibility=visibility)
        self._conn.execute(
            "UPDATE analytics.videos SET listed = %s WHERE video_id = %s",
            [visibility == "public", video_id],
        )

    def remove(self, video_id: UUID, *, everywhere: bool = True) -> None:
        self._conn.execute(
            "UPDATE analytics.videos SET removed = true WHERE video_id = %s", [video_id]
        )
        if everywhere:
            self._conn.execute("DELETE FROM catalog.uploads WHERE upload_id = %s", [video_id])

    @property
    def kept(self) -> dict[UUID, str | None]:
        """Which videos were dealt with, and why where the provider did not take their text."""
        return dict(rows(self.url, KEPT))

    async def nearest(self, *videos: UUID, limit: int = 20) -> list[tuple[UUID, float]]:
        async with await AsyncConnection.connect(self.url, autocommit=True) as conn:
            return await nearest(conn, videos, limit=limit)

    @asynccontextmanager
    async def upkeep(self, embedder: Embedder) -> AsyncIterator[EmbeddingUpkeep]:
        """The job's work, round by round as the test says."""
        async with (
            leading(self.url, EMBEDDING_JOB) as kept,
            connected(self.url, EMBEDDING_JOB) as catalog,
        ):
            made = EmbeddingUpkeep(embedder, self.catalog, catalog, kept)
            assert await made.lacking() is None
            yield made

    @asynccontextmanager
    async def keeping(self, embedder: Embedder) -> AsyncIterator[None]:
        """The job as it runs in a process."""
        job = embedding_job(
            embedder,
            self.catalog,
            database_url=self.url,
            analytics_url=self.url,
            every=0.05,
        )
        task = asyncio.create_task(run_job(job))
        try:
            yield
        finally:
            await ended(task)
            await embedder.aclose()


def opened(url: str) -> Shop:
    """A shop on a connection of its own, for processes that are killed."""
    return Shop(url, connect(url, "test"))


def embedder_of(server_url: str, **changes: str) -> Embedder:
    values = {
        "OPENAI_BASE_URL": server_url,
        "EMBEDDING_MODEL": MODEL,
        "EMBEDDING_DIMENSIONS": str(DIMENSIONS),
        "LLM_BREAKER_SECONDS": "0.1",
        "LLM_CALLS_PER_MINUTE": "60000",
        **changes,
    }
    settings = load_settings(values)
    made = make_embedder(settings.embeddings, settings.llm)
    assert made is not None
    return made

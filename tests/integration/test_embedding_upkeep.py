"""Embeddings follow the videos' texts, whatever fails meanwhile; no text is sent without need."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from unittest.mock import patch
from uuid import UUID

import pytest
from psycopg import Connection
from psycopg.errors import CheckViolation, UndefinedTable
from psycopg.rows import TupleRow
from structlog.testing import capture_logs

from infra import metrics
from infra.llm.errors import (
    LanguageModelError,
    Malformed,
    Overloaded,
    RejectedRequest,
    TimedOut,
)
from projections.recommendations import embeddings
from projections.recommendations.embeddings import state
from tests import openai_server as server_of
from tests.fork_server import ForkedProcess
from tests.integration.embedding_support import (
    FakeEmbedder,
    Shop,
    embedder_of,
)
from tests.openai_server import Answer, Call, embedded, openai_server
from tests.support import DEADLINE_SECONDS, until
from workers.recommendations import EmbeddingUpkeep

PROVIDER = ("backlot_embedding_failures_total", "provider")
DATABASE = ("backlot_embedding_failures_total", "database")


@pytest.fixture
def shop(database_url: str, conn: Connection[TupleRow]) -> Shop:
    return Shop(database_url, conn)


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder()


def rounds(shop: Shop, embedder: FakeEmbedder, count: int = 1) -> list[int]:
    """How many texts each of some rounds dealt with."""

    async def run() -> list[int]:
        async with shop.upkeep(embedder) as upkeep:
            return [await upkeep.run() for _ in range(count)]

    return asyncio.run(run())


def failed(what: tuple[str, str]) -> float:
    name, step = what
    return metrics.value(name, step=step)


def has(shop: Shop, video: UUID) -> bool:
    """Whether the job has made the table, and dealt with the video."""
    with suppress(UndefinedTable):
        return video in shop.kept
    return False


def when_titled(
    titles: Sequence[str], error: type[LanguageModelError]
) -> Callable[[Sequence[str]], LanguageModelError | None]:
    """A fault of calls that hold one of these texts."""
    return lambda texts: error("no") if set(titles) & set(texts) else None


class TestTexts:
    def test_each_video_is_sent_once(self, shop: Shop, embedder: FakeEmbedder) -> None:
        videos = [shop.video(f"Video {number}") for number in range(130)]
        before = metrics.value("backlot_embeddings_total", outcome="made")
        assert rounds(shop, embedder, 2) == [130, 0]
        assert rounds(shop, embedder) == [0]
        assert shop.kept == dict.fromkeys(videos)
        assert sorted(embedder.sent) == sorted(f"Video {number}" for number in range(130))
        assert metrics.value("backlot_embeddings_total", outcome="made") - before == 130

    def test_more_than_a_page_of_videos(
        self, shop: Shop, embedder: FakeEmbedder, conn: Connection[TupleRow]
    ) -> None:
        with conn.transaction():
            for number in range(1100):
                shop.video(f"Video {number}")
        assert rounds(shop, embedder, 2) == [1100, 0]
        assert len(shop.kept) == 1100

    def test_what_is_sent(self, shop: Shop, embedder: FakeEmbedder) -> None:
        shop.video("Rain", category="Weather", description="Drops.", transcript="It is wet.")
        shop.video("Snow", transcript="")
        shop.video("🌧" * 200, description="🌧" * 5000, transcript="🌧" * 5000)
        rounds(shop, embedder)
        whole, bare, long = embedder.sent
        assert whole == "Rain\nWeather\nDrops.\nIt is wet."
        assert bare == "Snow"
        assert len(long) == 200 + 1 + 600 + 1 + 1000

    @pytest.mark.parametrize("field", ["title", "category", "description", "transcript"])
    def test_a_text_that_changes_is_sent_again(
        self, shop: Shop, embedder: FakeEmbedder, field: str
    ) -> None:
        changed, _ = shop.video("Rain"), shop.video("Snow")
        rounds(shop, embedder)
        embedder.calls.clear()
        shop.change(changed, **{field: "Hail"})
        assert rounds(shop, embedder, 2) == [1, 0]
        assert [text.split("\n")[-1] for text in embedder.sent] == ["Hail"]
        shop.change(changed, duration_seconds=5.0)
        assert rounds(shop, embedder) == [0]

    def test_uploads_on_their_way_are_not_sent(self, shop: Shop, embedder: FakeEmbedder) -> None:
        shop.video("Rain", status="started", completed_position=None)
        assert rounds(shop, embedder) == [0]

    def test_another_model_embeds_everything_anew(
        self, shop: Shop, embedder: FakeEmbedder, conn: Connection[TupleRow]
    ) -> None:
        shop.video("Rain"), shop.video("Snow")
        rounds(shop, embedder)
        for other in (FakeEmbedder("other"), FakeEmbedder("other", 24)):
            assert rounds(shop, other, 2) == [2, 0]
            found = state(conn)
            assert found == embeddings.EmbeddingState(other.model, other.dimensions, 2, 0)


class TestRemoval:
    @pytest.mark.parametrize("visibility", ["unlisted", "private"])
    def test_what_is_not_public_is_neither_sent_nor_kept(
        self, shop: Shop, embedder: FakeEmbedder, visibility: str
    ) -> None:
        hidden, shown = shop.video("Rain", visibility=visibility), shop.video("Snow")
        rounds(shop, embedder)
        assert (embedder.sent, shop.kept) == (["Snow"], {shown: None})
        shop.show(hidden, "public")
        shop.show(shown, visibility)
        rounds(shop, embedder)
        assert (embedder.sent, shop.kept) == (["Snow", "Rain"], {hidden: None})

    def test_what_is_removed_is_forgotten(self, shop: Shop, embedder: FakeEmbedder) -> None:
        gone, stays = shop.video("Rain"), shop.video("Snow")
        rounds(shop, embedder)
        shop.remove(gone)
        assert rounds(shop, embedder) == [0]
        assert shop.kept == {stays: None}

    def test_what_the_catalog_still_has_is_not_sent(
        self, shop: Shop, embedder: FakeEmbedder
    ) -> None:
        shop.remove(shop.video("Rain"), everywhere=False)
        assert rounds(shop, embedder) == [0]
        assert embedder.calls == []

    def test_what_is_removed_while_its_text_is_fetched(
        self, shop: Shop, embedder: FakeEmbedder
    ) -> None:
        first = [shop.video(f"Video {number}") for number in range(64)]
        last = shop.video("Rain")

        def remove_last(texts: Sequence[str]) -> None:
            shop.remove(last)

        embedder.fault = remove_last
        assert rounds(shop, embedder) == [65]
        assert shop.kept == dict.fromkeys(first)


class TestRejected:
    def test_a_text_that_is_not_taken_is_set_aside(
        self, shop: Shop, embedder: FakeEmbedder
    ) -> None:
        videos = [shop.video(f"Video {number}") for number in range(64)]
        before = metrics.value("backlot_embeddings_total", outcome="rejected")
        embedder.fault = when_titled(["Video 7", "Video 40"], RejectedRequest)
        assert rounds(shop, embedder) == [64]
        rejected = {videos[7]: "rejected", videos[40]: "rejected"}
        assert shop.kept == dict.fromkeys(videos) | rejected
        assert metrics.value("backlot_embeddings_total", outcome="rejected") - before == 2
        embedder.calls.clear()
        assert rounds(shop, embedder) == [0]
        assert embedder.calls == []

    def test_until_it_changes(self, shop: Shop, embedder: FakeEmbedder) -> None:
        video = shop.video("Bad")
        embedder.fault = when_titled(["Bad"], Malformed)
        rounds(shop, embedder)
        assert shop.kept == {video: "malformed"}
        shop.change(video, title="Good")
        assert rounds(shop, embedder) == [1]
        assert shop.kept == {video: None}

    def test_nothing_is_set_aside_when_all_is_rejected(
        self, shop: Shop, embedder: FakeEmbedder
    ) -> None:
        for number in range(64):
            shop.video(f"Video {number}")
        embedder.fault = lambda _: RejectedRequest("no such model")
        with pytest.raises(RejectedRequest):
            rounds(shop, embedder)
        assert shop.kept == {}
        assert len(embedder.calls) == 2, "the batch and the probe"


class TestFailures:
    def test_a_provider_that_comes_back(self, shop: Shop, embedder: FakeEmbedder) -> None:
        videos = [shop.video(f"Video {number}") for number in range(100)]
        embedder.fault = lambda _: Overloaded("away")
        before = failed(PROVIDER)

        async def run() -> None:
            async with shop.keeping(embedder):
                await until(lambda: failed(PROVIDER) >= before + 3)
                assert shop.kept == {}
                embedder.fault = lambda _: None
                await until(lambda: shop.kept == dict.fromkeys(videos))

        with capture_logs() as logs:
            asyncio.run(run())
        assert {"embedding_postponed"} <= {line["event"] for line in logs}

    def test_a_text_that_breaks_the_provider_does_not_hold_up_the_others(
        self, shop: Shop, embedder: FakeEmbedder
    ) -> None:
        videos = [shop.video(f"Video {number}") for number in range(100)]
        embedder.fault = when_titled(["Video 30"], Overloaded)

        async def run() -> None:
            async with shop.upkeep(embedder) as upkeep:
                for _ in range(20):
                    try:
                        await upkeep.run()
                    except Overloaded:
                        continue
                    break

        asyncio.run(run())
        others = [video for video in videos if video != videos[30]]
        assert shop.kept == dict.fromkeys(others)
        embedder.fault = lambda _: None
        assert rounds(shop, embedder) == [1]

    def test_a_provider_too_slow_for_many_texts_gets_fewer(
        self, shop: Shop, embedder: FakeEmbedder
    ) -> None:
        for number in range(100):
            shop.video(f"Video {number}")
        embedder.fault = lambda texts: TimedOut("slow") if len(texts) > 10 else None

        async def run() -> None:
            async with shop.upkeep(embedder) as upkeep:
                while len(shop.kept) < 100:
                    try:
                        await upkeep.run()
                    except TimedOut:
                        continue

        asyncio.run(asyncio.wait_for(run(), DEADLINE_SECONDS))
        assert len(embedder.sent) < 1000

    def test_a_batch_is_kept_whole_or_not_at_all(
        self, shop: Shop, embedder: FakeEmbedder, conn: Connection[TupleRow]
    ) -> None:
        videos = [shop.video(f"Video {number}") for number in range(64)]

        async def run() -> None:
            async with shop.upkeep(embedder) as upkeep:
                rule = f"ALTER TABLE analytics.embeddings ADD CHECK (video_id <> '{videos[-1]}')"
                conn.execute(rule.encode())
                await upkeep.run()

        with pytest.raises(CheckViolation):
            asyncio.run(run())
        assert shop.kept == {}

    def test_the_database_is_away_at_the_start(self, embedder: FakeEmbedder, shop: Shop) -> None:
        shop.url = "postgresql://nobody@127.0.0.1:1/none"
        before = failed(DATABASE)

        async def run() -> None:
            async with shop.keeping(embedder):
                await until(lambda: failed(DATABASE) > before + 1)

        asyncio.run(run())

    def test_connections_that_are_cut_are_made_again(
        self, shop: Shop, embedder: FakeEmbedder, conn: Connection[TupleRow]
    ) -> None:
        first = shop.video("Rain")
        before = failed(DATABASE)

        async def run() -> UUID:
            async with shop.keeping(embedder):
                await until(lambda: has(shop, first))
                conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'backlot embedding' AND datname = current_database()"
                )
                await until(lambda: failed(DATABASE) > before)
                second = shop.video("Snow")
                await until(lambda: has(shop, second))
                return second

        second = asyncio.run(run())
        assert sorted(embedder.sent) == ["Rain", "Snow"]
        assert shop.kept == {first: None, second: None}

    def test_a_database_without_pgvector_is_told_once(
        self, shop: Shop, embedder: FakeEmbedder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("workers.recommendations.LONGEST_PAUSE_SECONDS", 0.01)
        shop.video("Rain")
        looks: list[str | None] = []
        lacking = EmbeddingUpkeep.lacking

        async def look(upkeep: EmbeddingUpkeep) -> str | None:
            looks.append(await lacking(upkeep))
            return looks[-1]

        monkeypatch.setattr(EmbeddingUpkeep, "lacking", look)

        async def run() -> None:
            with ExitStack() as missing:
                absent = b"SELECT false, NULL, false"
                missing.enter_context(patch.object(embeddings, "EXTENSION", absent))
                async with shop.keeping(embedder):
                    await until(lambda: len(looks) > 2)
                    missing.close()
                    await until(lambda: len(embedder.calls) > 0)

        with capture_logs() as logs:
            asyncio.run(run())
        told = [line for line in logs if line["event"] == "embeddings_unavailable"]
        assert [line["log_level"] for line in told] == ["warning"]
        assert "pgvector" in told[0]["reason"]


class TestOneWriter:
    def test_two_processes_send_each_text_once(self, shop: Shop) -> None:
        videos = [shop.video(f"Video {number}") for number in range(200)]
        one, other = FakeEmbedder(), FakeEmbedder()

        async def run() -> None:
            async with shop.keeping(one), shop.keeping(other):
                await until(lambda: len(one.sent) + len(other.sent) >= 200)
                await asyncio.sleep(0.3)

        asyncio.run(run())
        assert len(one.sent) + len(other.sent) == 200
        assert not (one.sent and other.sent)
        assert shop.kept == dict.fromkeys(videos)


WORKER = """
import asyncio, sys
from tests.integration.embedding_support import embedder_of, opened

async def main() -> None:
    shop = opened(sys.argv[1])
    async with shop.keeping(embedder_of(sys.argv[2])):
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_killed_in_the_middle_it_goes_on(
    shop: Shop, conn: Connection[TupleRow], tmp_path: Path
) -> None:
    with conn.transaction():
        videos = [shop.video(f"Video {number}") for number in range(400)]
    with openai_server() as server:
        server.delay = 0.15
        seen = set()
        for _ in range(3):
            calls = len(server.calls)
            process = ForkedProcess(
                "-c",
                [WORKER, shop.url, server.url],
                cwd=tmp_path,
                env=os.environ,
                stdout=tmp_path / "out",
                stderr=tmp_path / "err",
            )
            deadline = time.monotonic() + DEADLINE_SECONDS
            while len(server.calls) < calls + 2:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait(DEADLINE_SECONDS)
            seen.add(len(shop.kept))
        server.delay = 0.0

        async def the_rest() -> None:
            async with shop.keeping(embedder_of(server.url)):
                await until(lambda: len(shop.kept) == len(videos))

        asyncio.run(the_rest())
        assert any(0 < count < len(videos) for count in seen)
        assert all(count % 64 == 0 for count in seen), "a batch is one transaction"
        # Only what was on its way when a process died was sent twice.
        sent = [text for call in server.calls for text in call.texts]
        assert len(sent) - len(set(sent)) <= 3 * 64
    assert shop.kept == dict.fromkeys(videos)


def test_over_http_a_poisonous_title_is_set_aside_and_the_nearest_are_found(shop: Shop) -> None:
    rain, again, snow = (shop.video(title) for title in ("Rain", "Rain", "Snow"))
    bad = shop.video("Bad")

    def refuses_bad(call: Call) -> Answer:
        return server_of.status(400) if "Bad" in call.texts else embedded(call)

    async def run() -> list[tuple[UUID, float]]:
        async with shop.keeping(embedder_of(server.url)):
            await until(lambda: has(shop, bad))
        return await shop.nearest(rain)

    with openai_server() as server:
        server.otherwise = refuses_bad
        (nearest, similarity), (second, _) = asyncio.run(run())
    assert (nearest, second) == (again, snow)
    assert similarity == pytest.approx(1.0, abs=0.001)
    assert shop.kept == {rain: None, again: None, snow: None, bad: "rejected"}

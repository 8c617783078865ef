"""Which videos are nearest, against plain Python that compares each with each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from math import hypot
from random import Random
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from projections.recommendations import embeddings
from projections.recommendations.embeddings import MOST_SEEDS, Embedded, prepare, put
from tests.integration.embedding_support import DIMENSIONS, MODEL, Shop

Vectors = dict[UUID, list[float]]


@pytest.fixture
def shop(database_url: str, conn: Connection[TupleRow]) -> Shop:
    made = Shop(database_url, conn)
    assert prepare(conn, MODEL, DIMENSIONS) is None
    return made


def unit(vector: Sequence[float]) -> list[float]:
    return [number / hypot(*vector) for number in vector]


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def brute_force(vectors: Vectors, seeds: Sequence[UUID], limit: int) -> list[tuple[UUID, float]]:
    found = {
        video: max(0.0, *(cosine(vector, vectors[seed]) for seed in seeds))
        for video, vector in vectors.items()
        if video not in seeds
    }
    return sorted(found.items(), key=lambda each: -each[1])[:limit]


def placed(
    shop: Shop, conn: Connection[TupleRow], count: int, place: Callable[[Random], list[float]]
) -> Vectors:
    chance = Random(3)
    with conn.transaction():
        vectors = {shop.video(f"Video {number}"): unit(place(chance)) for number in range(count)}
    put(conn, [Embedded(video, b"digest", vector) for video, vector in vectors.items()])
    conn.execute("ANALYZE analytics.embeddings, analytics.videos")
    return vectors


def anywhere(chance: Random) -> list[float]:
    return [chance.gauss(0, 1) for _ in range(DIMENSIONS)]


def test_the_nearest_are_found(shop: Shop, conn: Connection[TupleRow]) -> None:
    vectors = placed(shop, conn, 1500, anywhere)
    for seeds in (1, 3, MOST_SEEDS):
        assert found_of(vectors, shop, seeds) >= 0.98, seeds


def found_of(vectors: Vectors, shop: Shop, seeds: int) -> float:
    """Return the part that is found of those nearest to so many videos; each is as near as told."""
    chance, hits = Random(4), 0
    for _ in range(20):
        mine = chance.sample(list(vectors), seeds)
        found = asyncio.run(shop.nearest(*mine))
        wanted = brute_force(vectors, mine, 20)
        # Half precision keeps three digits.
        exact = dict(brute_force(vectors, mine, len(vectors)))
        for video, similarity in found:
            assert similarity == pytest.approx(exact[video], abs=0.003)
        assert found == sorted(found, key=lambda each: -each[1])
        hits += len({video for video, _ in wanted} & {video for video, _ in found})
    return hits / (20 * 20)


def test_the_index_is_used(shop: Shop, conn: Connection[TupleRow]) -> None:
    vectors = placed(shop, conn, 1500, anywhere)
    query = embeddings.NEAREST.format(seeds=MOST_SEEDS, limit=20)
    with psycopg.connect(shop.url) as plain:
        plan = plain.execute(f"EXPLAIN {query}".encode(), {"videos": list(vectors)[:3]}).fetchall()
    assert "embeddings_nearest" in str(plan)


def test_wider_than_a_right_angle_is_nothing_in_common(
    shop: Shop, conn: Connection[TupleRow]
) -> None:
    mine, same, other = (shop.video(title) for title in ("a", "b", "c"))
    east = [1.0, *[0.0] * (DIMENSIONS - 1)]
    west = [-1.0, *[0.0] * (DIMENSIONS - 1)]
    put(conn, [Embedded(mine, b"", east), Embedded(same, b"", east), Embedded(other, b"", west)])
    assert asyncio.run(shop.nearest(mine)) == [(same, 1.0), (other, 0.0)]


def test_what_was_removed_is_not_returned_however_near(
    shop: Shop, conn: Connection[TupleRow]
) -> None:
    # So many that the first search of the index finds no others.
    vectors = placed(shop, conn, 1500, anywhere)
    (mine, _), *others = [(next(iter(vectors)), 0.0), *brute_force(vectors, [*vectors][:1], 1500)]
    gone = [video for video, _ in others[:400]]
    with conn.transaction():
        for video in gone:
            shop.remove(video)
    found = [video for video, _ in asyncio.run(shop.nearest(mine))]
    assert len(found) == 20
    assert not set(found) & set(gone)
    wanted = {video for video, _ in others[400:420]}
    assert len(wanted & set(found)) >= 18


def test_what_is_not_public_is_not_returned(shop: Shop, conn: Connection[TupleRow]) -> None:
    mine, near, far = placed(shop, conn, 3, anywhere)
    conn.execute("UPDATE analytics.videos SET listed = false WHERE video_id = %s", [near])
    assert [video for video, _ in asyncio.run(shop.nearest(mine))] == [far]


def test_what_is_not_completed_is_not_returned(shop: Shop, conn: Connection[TupleRow]) -> None:
    vectors = placed(shop, conn, 3, anywhere)
    mine, hidden, shown = vectors
    conn.execute("UPDATE analytics.videos SET completed_at = NULL WHERE video_id = %s", [hidden])
    assert [video for video, _ in asyncio.run(shop.nearest(mine))] == [shown]


def test_only_the_first_videos_that_have_one_are_looked_at(
    shop: Shop, conn: Connection[TupleRow]
) -> None:
    axes = [[float(at == axis) for at in range(DIMENSIONS)] for axis in range(DIMENSIONS)]
    mine = [shop.video(f"Mine {number}") for number in range(MOST_SEEDS + 1)]
    near = [shop.video(f"Near {number}") for number in range(MOST_SEEDS + 1)]
    for number in range(MOST_SEEDS + 1):
        pair = (mine[number], near[number])
        put(conn, [Embedded(video, b"", axes[number]) for video in pair])
    found = asyncio.run(shop.nearest(uuid4(), *mine))
    assert dict(found) == dict.fromkeys(near[:-1], 1.0) | {near[-1]: 0.0}
    assert len(asyncio.run(shop.nearest(*mine, limit=3))) == 3


def test_nothing_is_near_to_what_has_no_embedding(shop: Shop, conn: Connection[TupleRow]) -> None:
    placed(shop, conn, 3, anywhere)
    rejected = shop.video("Rejected")
    put(conn, [Embedded(rejected, b"", None, "rejected")])
    assert asyncio.run(shop.nearest(rejected, uuid4())) == []
    assert asyncio.run(shop.nearest()) == []


def test_without_a_table_nothing_is_near_and_the_transaction_goes_on(
    database_url: str, conn: Connection[TupleRow]
) -> None:
    shop = Shop(database_url, conn)
    assert asyncio.run(shop.nearest(uuid4())) == []

    async def within() -> None:
        async with await psycopg.AsyncConnection.connect(database_url) as opened:
            await opened.execute("SELECT 1")
            assert await embeddings.nearest(opened, [uuid4()], limit=5) == []
            await opened.execute("SELECT 1")

    asyncio.run(within())


class TestTheTable:
    def test_another_model_or_other_dimensions_begin_anew(
        self, shop: Shop, conn: Connection[TupleRow]
    ) -> None:
        placed(shop, conn, 3, anywhere)
        assert prepare(conn, MODEL, DIMENSIONS) is None
        assert len(shop.kept) == 3
        for model, dimensions in (("other", DIMENSIONS), ("other", 24)):
            assert prepare(conn, model, dimensions) is None
            found = embeddings.state(conn)
            assert found == embeddings.EmbeddingState(model, dimensions, 0, 0)
            put(conn, [Embedded(uuid4(), b"", [1.0] * dimensions)])

    def test_what_was_dropped_is_made_again(self, shop: Shop, conn: Connection[TupleRow]) -> None:
        conn.execute("DROP TABLE analytics.embeddings")
        assert embeddings.state(conn) is None
        assert prepare(conn, MODEL, DIMENSIONS) is None
        assert shop.kept == {}

    def test_all_dimensions_that_can_be_configured_can_be_kept(
        self, shop: Shop, conn: Connection[TupleRow]
    ) -> None:
        assert prepare(conn, MODEL, 2000) is None
        put(conn, [Embedded(uuid4(), b"", unit([0.001] * 2000))])

    @pytest.mark.parametrize(
        ("found", "reason"),
        [
            (b"SELECT false, NULL, false", "no pgvector"),
            (b"SELECT true, '0.7.4', true", "too old"),
            (b"SELECT true, '0.8.5', false", "search_path"),
        ],
    )
    def test_what_is_lacking_is_told(
        self,
        conn: Connection[TupleRow],
        monkeypatch: pytest.MonkeyPatch,
        found: bytes,
        reason: str,
    ) -> None:
        monkeypatch.setattr(embeddings, "EXTENSION", found)
        assert reason in str(prepare(conn, MODEL, DIMENSIONS))

    @pytest.mark.no_analytics
    def test_a_user_who_may_not_make_the_extension_is_told(
        self, database_url: str, conn: Connection[TupleRow]
    ) -> None:
        name = f"plain_{uuid4().hex}"
        conn.execute(f"CREATE ROLE {name} LOGIN".encode())
        conn.execute(f"ALTER DATABASE {conn.info.dbname} OWNER TO {name}".encode())
        conn.execute(f"CREATE SCHEMA analytics AUTHORIZATION {name}".encode())
        theirs = psycopg.conninfo.make_conninfo(database_url, user=name)
        try:
            with psycopg.connect(theirs, autocommit=True) as owners:
                assert "CREATE EXTENSION vector" in str(prepare(owners, MODEL, DIMENSIONS))
                conn.execute("CREATE EXTENSION vector")
                assert prepare(owners, MODEL, DIMENSIONS) is None
        finally:
            conn.execute(f"REASSIGN OWNED BY {name} TO CURRENT_USER".encode())
            conn.execute(f"DROP OWNED BY {name}".encode())
            conn.execute(f"DROP ROLE {name}".encode())

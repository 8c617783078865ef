"""Candidates of a user: what is among them and why, and above all what never is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID

import psycopg
import pytest
from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from projections.analytics.schema import migrate
from projections.likes import Likes
from projections.recommendations.attention import (
    CACHED_SECONDS,
    AttentionCache,
    attention_of,
    default_attention,
)
from projections.recommendations.candidates import material_for
from projections.recommendations.co_occurrence import Engagement, keep, rank_categories
from projections.recommendations.model import (
    Candidate,
    EngagedVideo,
    EngagementKind,
    Material,
    Profile,
    Weighing,
)
from projections.recommendations.profiles import profile_of
from projections.trending import Ranked
from tests.integration.projection_support import Writer, caught_up, hosting

T = TypeVar("T")

NOW = datetime.now(UTC).replace(microsecond=0)
WEIGHING = Weighing()


class World:
    """Videos and what viewers do; everything by numbers."""

    def __init__(self, url: str, conn: Connection[TupleRow]) -> None:
        self.url = url
        self.conn = conn

    def videos(
        self,
        numbers: Iterable[int],
        category: str | None = None,
        *,
        owner: str = "owner",
        removed: bool = False,
        listed: bool = True,
        completed: bool = True,
    ) -> None:
        at = NOW - timedelta(days=30) if completed else None
        rows = [(UUID(int=number), owner, category, at, removed, listed) for number in numbers]
        with self.conn.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO analytics.videos "
                "(video_id, owner, category, completed_at, removed, listed) "
                "VALUES (%s, %s, %s, %s, %s, %s)",
                rows,
            )

    def age(self, number: int, age: timedelta) -> None:
        self.conn.execute(
            "UPDATE analytics.videos SET completed_at = %s WHERE video_id = %s",
            (NOW - age, UUID(int=number)),
        )

    def happened(
        self,
        kind: str,
        metadata: Mapping[str, object],
        numbers: Iterable[int],
        age: timedelta,
        *,
        times: int,
    ) -> None:
        """So often to each of the videos, when it was of that age."""
        self.conn.execute(
            "INSERT INTO analytics.video_analytics "
            "SELECT gen_random_uuid(), video_id, 'x', %s, completed_at + %s, %s "
            "FROM analytics.videos, generate_series(1, %s) WHERE video_id = ANY (%s)",
            (kind, age, Jsonb(metadata), times, [UUID(int=number) for number in numbers]),
        )

    def watch(
        self, viewer: str, *numbers: int, kind: EngagementKind = EngagementKind.WATCHED
    ) -> None:
        """One after another, the last one now."""
        with self.conn.transaction():
            keep(
                self.conn,
                [
                    Engagement(viewer, str(UUID(int=number)), kind, NOW - timedelta(minutes=ago))
                    for ago, number in enumerate(reversed(numbers))
                ][::-1],
                WEIGHING,
            )

    def like(self, viewer: str, *numbers: int) -> None:
        self.watch(viewer, *numbers, kind=EngagementKind.LIKED)

    def ask(self, work: Callable[[AsyncConnection[TupleRow]], Awaitable[T]]) -> T:
        async def go() -> T:
            async with await AsyncConnection.connect(self.url, autocommit=True) as conn:
                return await work(conn)

        return asyncio.run(go())

    def candidates(
        self,
        profile: Profile,
        trending: Sequence[int] = (),
        similar: Sequence[tuple[int, float]] = (),
        limit: int = 60,
    ) -> Sequence[Candidate]:
        return self.material(profile, trending, similar, limit).candidates

    def material(
        self,
        profile: Profile,
        trending: Sequence[int] = (),
        similar: Sequence[tuple[int, float]] = (),
        limit: int = 60,
    ) -> Material:
        rank_categories(self.conn, WEIGHING)
        alike = [(UUID(int=number), value) for number, value in similar]

        async def go(conn: AsyncConnection[TupleRow]) -> Material:
            attention = await attention_of(conn, WEIGHING)
            return await material_for(
                conn, profile, ranked(trending), attention, similar=alike, limit=limit
            )

        return self.ask(go)


def ranked(numbers: Sequence[int]) -> list[Ranked]:
    return [
        Ranked(rank, UUID(int=number), 100.0 / rank, 0, 0, 0, 0, 0, 0)
        for rank, number in enumerate(numbers, 1)
    ]


def profile(watched: Sequence[int] = (), liked: Sequence[int] = (), user: str = "ann") -> Profile:
    def engaged(numbers: Sequence[int]) -> list[EngagedVideo]:
        return [EngagedVideo(UUID(int=number), NOW) for number in numbers]

    return Profile(user, engaged(watched), engaged(liked))


def numbers_of(candidates: Iterable[Candidate]) -> list[int]:
    return [candidate.video_id.int for candidate in candidates]


def by_number(candidates: Iterable[Candidate]) -> dict[int, Candidate]:
    return {candidate.video_id.int: candidate for candidate in candidates}


@pytest.fixture
def world(database_url: str, conn: Connection[TupleRow]) -> World:
    migrate(conn)
    return World(database_url, conn)


def test_what_others_like_beside_it_is_near(world: World) -> None:
    world.videos(range(1, 8))
    for viewer in ("bob", "eve"):
        world.watch(viewer, 1, 2)
    world.watch("dan", 1, 3)
    material = world.material(profile([1]))
    found = material.candidates
    assert numbers_of(found) == [2, 3]
    assert found[0].neighbour > found[1].neighbour > 0
    assert found[0].neighbour + found[1].neighbour == pytest.approx(1)
    assert material.sure == pytest.approx(WEIGHING.sure(3), rel=1e-3)
    assert found[0].because == UUID(int=1)


def test_it_is_because_of_the_nearest_altogether(world: World) -> None:
    """Three viewers, one after another, brought 1 nearer to 3; one brought 2, and more at once."""
    world.videos(range(1, 4))
    for viewer in ("bob", "eve", "joe"):
        world.watch(viewer, 1, 3)
    world.like("dan", 2, 3)
    world.watch("kim", 2)
    (found,) = world.candidates(profile([1, 2]))
    assert (found.video_id, found.because) == (UUID(int=3), UUID(int=1))


def test_popularity_is_divided_by(world: World) -> None:
    """Everybody has watched 9; that tells less of those who have watched 1 than 2 does."""
    world.videos(range(1, 10))
    for number in range(50):
        world.watch(f"v-{number}", 9)
    world.watch("bob", 1, 2, 9)
    found = by_number(world.candidates(profile([1])))
    assert found[2].neighbour > 2 * found[9].neighbour


def test_likes_and_the_newest_say_most(world: World) -> None:
    world.videos(range(1, 20))
    for pair in ((1, 11), (2, 12), (3, 13)):
        world.watch(f"v-{pair}", *pair)
    found = by_number(world.candidates(profile([1, 2], liked=[3])))
    assert found[13].neighbour > found[11].neighbour > found[12].neighbour
    assert found[13].because == UUID(int=3)


def test_nothing_that_is_gone_own_or_known(world: World) -> None:
    shown, hidden = [10], [11, 12, 13, 14, 15, 16, 18]
    world.videos([1, 10, 14, 15, 16], "art")
    world.videos([11], "art", removed=True)
    world.videos([12], "art", owner="ann")
    world.videos([13], "art", completed=False)
    world.videos([18], "art", listed=False)
    everything = [*shown, *hidden, 17]
    world.watch("bob", 1, *everything)
    # 14 and 15 long ago, far behind what the profile shows; 16 the sink has not seen yet.
    world.watch("ann", 14)
    world.like("ann", 15)
    similar = [(number, 0.9) for number in everything]
    known = profile([1], liked=[16])
    assert numbers_of(world.candidates(known, everything, similar)) == shown
    new = profile(user="new")
    assert sorted(numbers_of(world.candidates(new, everything, similar))) == [1, 10, 12, 14, 15, 16]


def test_every_source_has_its_turn(world: World) -> None:
    world.videos(range(1, 200), "art")
    for viewer in range(40):
        world.watch(f"v-{viewer}", 1, *range(2 + viewer, 60 + viewer))
    for number in range(120, 150):
        world.watch(f"w-{number}", number)
    trending, similar = range(150, 180), [(number, number / 200) for number in range(180, 199)]
    found = world.candidates(profile([1]), trending, similar)
    assert len(found) == 60
    assert len(set(numbers_of(found))) == 60
    signals = by_number(found)
    assert sum(each.neighbour > 0 for each in found) >= 20
    assert sum(each.trending > 0 for each in found) >= 8
    assert sum(each.similar > 0 for each in found) >= 8
    assert signals[150].trending == max(each.trending for each in found)
    assert signals[198].similar == pytest.approx(198 / sum(range(180, 199)))
    for signal in ("trending", "neighbour", "same_category", "similar", "popular"):
        values = [getattr(each, signal) for each in found]
        assert min(values) >= 0, signal
        assert 0 < sum(values) < 1 + 1e-9, signal
    assert numbers_of(world.candidates(profile([1]), trending, similar)) == numbers_of(found)
    assert len(world.candidates(profile([1]), trending, similar, limit=7)) == 7


def test_only_twenty_trending_are_looked_at(world: World) -> None:
    world.videos(range(1, 40))
    assert numbers_of(world.candidates(profile([1]), range(2, 40))) == list(range(2, 22))


def test_the_categories_of_the_profile(world: World) -> None:
    world.videos([1, 2, 3, 4], "art")
    world.videos([10, 11], "music")
    world.videos([20], "sport")
    for number, viewers in {3: 3, 4: 2, 10: 1, 11: 1, 20: 9}.items():
        for viewer in range(viewers):
            world.watch(f"v-{number}-{viewer}", number)
    found = by_number(world.candidates(profile([1, 2, 11], user="eve"), [10, 20]))
    assert sorted(found) == [3, 4, 10, 20]
    assert found[3].same_category > found[4].same_category > found[10].same_category > 0
    assert found[20].same_category == 0


def test_what_is_popular_needs_no_category(world: World) -> None:
    """Nor does it need to trend, to be a neighbour, or anybody who is known."""
    world.videos(range(1, 5))
    for number, viewers in {2: 1, 3: 9, 4: 3}.items():
        for viewer in range(viewers):
            world.watch(f"v-{number}-{viewer}", number)
    for user in (profile([1]), profile(user="new")):
        found = by_number(world.candidates(user))
        assert found[3].popular > found[4].popular > found[2].popular > 0
        assert sum(each.popular for each in found.values()) == pytest.approx(1)


def test_what_is_left_of_the_old(world: World) -> None:
    """Age counts up to the last engagement that is known: a site that sleeps keeps its order."""
    world.videos(range(1, 5))
    ages = {2: 0, 3: 7, 4: 700}
    for number, days in ages.items():
        world.age(number, timedelta(days=days))
    world.watch("bob", 2, 3, 4)
    found = by_number(world.candidates(profile([1])))
    left = {number: default_attention(WEIGHING).left(86400 * days) for number, days in ages.items()}
    for number, share in left.items():
        assert found[number].popular == pytest.approx(share / sum(left.values()), rel=1e-3)


def test_what_age_leaves_is_measured_by_what_happened(world: World) -> None:
    """One is as popular as the other; nobody has watched anything that was two days old."""
    world.videos(range(1, 60))
    for number in range(1, 60):
        world.age(number, timedelta(hours=number))
    world.watch("bob", 2, 50)
    before = by_number(world.candidates(profile()))
    assert before[2].popular < 2 * before[50].popular
    for kind, metadata in (
        ("view", {"counts": True, "own": False}),
        ("like", {"delta": 1}),
    ):
        world.happened(kind, metadata, range(3, 60), timedelta(hours=2.5), times=10)
    for kind, metadata in (
        ("view", {"counts": False, "own": False}),
        ("view", {"counts": True, "own": True}),
        ("like", {"delta": -1}),
    ):
        world.happened(kind, metadata, range(52, 60), timedelta(hours=51), times=500)
    # What was kept before is gone.
    world.conn.execute("INSERT INTO analytics.attention VALUES (7000, 1), (200000, 1)")
    found = by_number(world.candidates(profile()))
    assert found[2].popular > 50 * found[50].popular > 0


def test_what_age_leaves_is_read_once_for_as_long_as_it_holds(world: World) -> None:
    """Concurrent callers share the query, and who comes within the time needs none."""
    minutes = iter((0.0, 0.0, CACHED_SECONDS - 1, CACHED_SECONDS, CACHED_SECONDS))
    cache = AttentionCache(WEIGHING, clock=lambda: next(minutes))

    async def go(conn: AsyncConnection[TupleRow]) -> list[float]:
        found = []
        for share in (0.5, 0.25, 0.125):
            await conn.execute("DELETE FROM analytics.attention")
            await conn.execute("INSERT INTO analytics.attention VALUES (0, %s)", (share,))
            found.append((await cache.get(conn)).left(0))
        return found

    assert world.ask(go) == [0.5, 0.5, 0.125]


def test_what_a_profile_tells_fades_while_the_user_is_away(world: World) -> None:
    world.videos(range(1, 4), "art")
    world.watch("bob", 1, 2)
    world.watch("eve", 3)
    found, away = (
        world.material(Profile("ann", [EngagedVideo(UUID(int=1), NOW - ago)]))
        for ago in (timedelta(0), WEIGHING.profile_half)
    )
    assert found.telling == 1.0
    assert away.telling == pytest.approx(0.5)
    assert world.material(profile()).telling == 0.0


def test_few_pairs_are_not_sure(world: World) -> None:
    """Ten times as many brought the same together: that is the likelier."""
    world.videos(range(1, 5))
    world.watch("v", 1, 2)
    one = world.material(profile([1])).sure
    assert one == pytest.approx(1 / (1 + WEIGHING.sure_pairs), rel=1e-3)
    for number in range(9):
        world.watch(f"v-{number}", 1, 2)
    ten = world.material(profile([1])).sure
    assert ten == pytest.approx(10 / (10 + WEIGHING.sure_pairs), rel=1e-3)


def test_a_site_that_sleeps_is_as_sure_as_ever(world: World) -> None:
    world.videos(range(1, 4))
    world.watch("bob", 1, 2)
    awake = world.material(profile([1]))
    long_ago = 50 * WEIGHING.half_life_seconds
    earlier = "SET as_of = ARRAY (SELECT at - %s FROM unnest(as_of) AS at)"
    world.conn.execute(f"UPDATE analytics.neighbour_deltas {earlier}".encode(), (long_ago,))
    world.conn.execute("UPDATE analytics.engagement SET as_of = as_of - %s", (long_ago,))
    asleep = world.material(profile([1]))
    assert asleep.sure == pytest.approx(awake.sure, rel=1e-3)


def test_a_new_user_gets_every_category(world: World) -> None:
    for at, category in ((100, "art"), (200, "music"), (300, "sport")):
        world.videos(range(at, at + 30), category)
        for number in range(at, at + 30):
            world.watch(f"v-{number}", number)
    trending = range(100, 120)
    found = world.candidates(profile(user="new"), trending)
    assert [each.category for each in found[:3]] != ["art", "art", "art"]
    assert {each.category for each in found[:3]} == {"art", "music", "sport"}
    assert set(numbers_of(found)) >= set(trending)
    assert numbers_of(found)[0] == 100


def test_without_anything_there_is_nothing(world: World) -> None:
    assert world.candidates(profile()) == []
    assert world.candidates(profile([1], [2])) == []


def test_the_profile(world: World, writer: Writer) -> None:
    likes = Likes()
    ids = [writer.video().id for _ in range(24)]
    for each in ids[:12]:
        writer.like(each, "ann")
    writer.unlike(ids[11], "ann")
    writer.like(ids[3], "bob")
    events = [
        Engagement("ann", str(each), EngagementKind.WATCHED, NOW - timedelta(hours=place))
        for place, each in enumerate(ids)
    ]
    with world.conn.transaction():
        keep(world.conn, [*events, events[5]._replace(viewer="bob")], WEIGHING)
        keep(world.conn, [events[10]._replace(kind=EngagementKind.LIKED)], WEIGHING)
    with hosting(world.url, likes):
        caught_up(world.url, ["likes"], writer.head)

        async def ask(conn: AsyncConnection[TupleRow], user: str) -> Profile:
            async with await psycopg.AsyncConnection.connect(world.url) as main_conn:
                return await profile_of(conn, likes, main_conn, user)

        found = world.ask(lambda conn: ask(conn, "ann"))
        nobody = world.ask(lambda conn: ask(conn, "nobody"))
    assert nobody.is_empty
    assert [each.video_id for each in found.watched] == ids[:20]
    assert found.watched[0].at == NOW
    assert [each.video_id for each in found.liked] == ids[10:0:-1]
    assert found.liked[0].at == NOW - timedelta(hours=10)

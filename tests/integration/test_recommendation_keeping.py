"""Who engaged with what, and what that ties together: against an oracle in plain Python."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import combinations
from random import Random
from uuid import UUID

import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from projections.analytics.schema import migrate
from projections.recommendations.co_occurrence import Engagement, keep, rank_categories
from projections.recommendations.model import EngagementKind, Weighing
from tests.support import seeds

NOW = datetime(2026, 3, 14, 15, 26, 53, tzinfo=UTC)
WEIGHING = Weighing()
LONG_AGO = timedelta(days=400)

TRUNCATE = """
TRUNCATE analytics.engaged, analytics.viewers, analytics.earlier_turns, analytics.engagement,
         analytics.neighbour_lists, analytics.neighbour_deltas
"""

Weights = dict[tuple[str, str], float]


@pytest.fixture
def tables(conn: Connection[TupleRow]) -> Connection[TupleRow]:
    """A database with the tables of the analytics."""
    migrate(conn)
    return conn


def video(number: int) -> str:
    return str(UUID(int=number))


def watched(viewer: str, number: int, ago: timedelta = timedelta()) -> Engagement:
    return Engagement(viewer, video(number), EngagementKind.WATCHED, NOW - ago)


def liked(viewer: str, number: int, ago: timedelta = timedelta()) -> Engagement:
    return Engagement(viewer, video(number), EngagementKind.LIKED, NOW - ago)


def take(
    conn: Connection[TupleRow], batch: Sequence[Engagement], weighing: Weighing = WEIGHING
) -> frozenset[str]:
    """Keep a batch as the sink does."""
    with conn.transaction():
        return keep(conn, batch, weighing)


def faded(weight: float, at: datetime, weighing: Weighing = WEIGHING) -> float:
    return float(weight * 2 ** ((at - NOW) / weighing.half_life))


def neighbours(conn: Connection[TupleRow]) -> Weights:
    """The weights of now."""
    rows = conn.execute(
        "SELECT video_id::text, neighbour_id::text, weight, as_of FROM analytics.neighbours"
    )
    found: Weights = defaultdict(float)
    for one, other, weight, as_of in rows:
        found[one, other] += faded(weight, datetime.fromtimestamp(as_of, UTC))
    return dict(found)


def totals(conn: Connection[TupleRow]) -> dict[str, float]:
    rows = conn.execute("SELECT video_id::text, weight, as_of FROM analytics.engagement")
    return {one: faded(weight, datetime.fromtimestamp(at, UTC)) for one, weight, at in rows}


def history(random: Random, size: int = 150) -> list[Engagement]:
    """Of eight viewers and fifteen videos, each kind of engagement once."""
    kinds = [EngagementKind.WATCHED, EngagementKind.LIKED]
    found = {
        (f"viewer-{random.randrange(8)}", video(random.randrange(15)), random.choice(kinds)):
            timedelta(seconds=random.randrange(int(LONG_AGO.total_seconds())))
        for _ in range(size)
    }  # fmt: skip
    return [Engagement(*key, NOW - ago) for key, ago in found.items()]


def oracle(events: Sequence[Engagement]) -> tuple[Weights, dict[str, float]]:
    """Each two engagements of a viewer, and each engagement alone."""
    pairs: Weights = defaultdict(float)
    alone: dict[str, float] = defaultdict(float)
    for one, other in combinations(events, 2):
        if one.viewer == other.viewer and one.video_id != other.video_id:
            weight = WEIGHING.of(one.kind) * WEIGHING.of(other.kind)
            weight = faded(weight, max(one.at, other.at))
            pairs[one.video_id, other.video_id] += weight
            pairs[other.video_id, one.video_id] += weight
    for event in events:
        alone[event.video_id] += faded(WEIGHING.of(event.kind), event.at)
    return pairs, alone


def often_folded(seed: int) -> Weighing:
    """With deltas that are folded early, late, or never; no list of 14 neighbours is cut."""
    return Weighing(neighbours=(7, 14, 50, 1_000)[seed % 4])


@seeds(range(8), always=4)
def test_any_order_any_batches_any_repetition(tables: Connection[TupleRow], seed: int) -> None:
    random, weighing = Random(seed), often_folded(seed)
    events = history(random)
    coming = [*events, *random.choices(events, k=60)]
    random.shuffle(coming)
    while coming:
        cut = random.choice([1, 7, 40])
        take(tables, coming[:cut], weighing)
        coming = coming[cut:]
        assert_bounded(tables, weighing)
    pairs, alone = oracle(events)
    assert neighbours(tables) == pytest.approx(pairs)
    assert totals(tables) == pytest.approx(alone)


def in_any_order(random: Random, streams: Sequence[Sequence[Engagement]]) -> list[Engagement]:
    """Each stream in its order, between the others."""
    placed: list[tuple[float, Engagement]] = []
    for stream in streams:
        places = sorted(random.random() for _ in stream)
        placed += zip(places, stream, strict=True)
    return [event for _, event in sorted(placed, key=lambda each: each[0])]


@seeds(range(8), always=4)
def test_an_unlike_leaves_what_there_would_be_without_its_like(
    tables: Connection[TupleRow], seed: int
) -> None:
    """Some likes are taken back, and some of those are given again; all of it comes twice."""
    random, streams, standing = Random(seed), [], []
    weighing = often_folded(seed)
    for event in history(random):
        streams.append([event])
        if event.kind is EngagementKind.WATCHED or random.random() < 0.4:
            standing.append(event)
            continue
        later = event._replace(at=event.at + timedelta(days=3))
        streams[-1].append(later._replace(kind=EngagementKind.UNLIKED))
        if random.random() < 0.5:
            again = later._replace(at=later.at + timedelta(days=3))
            streams[-1].append(again)
            standing.append(again)
    once = in_any_order(random, streams)
    for coming in (once, once):
        for cut in range(0, len(coming), 9):
            take(tables, coming[cut : cut + 9], weighing)
        pairs, alone = oracle(standing)
        assert neighbours(tables) == pytest.approx(pairs, abs=1e-6)
        left = {one: weight for one, weight in totals(tables).items() if weight > 1e-6}
        assert left == pytest.approx(alone)
        assert_bounded(tables, weighing)


def test_an_unlike_of_long_after_takes_back_no_more_than_its_like_brought(
    tables: Connection[TupleRow],
) -> None:
    """With what came just before and after, and not with what came long after."""
    weighing = Weighing(paired_with=2)
    hours = [timedelta(hours=100 - number) for number in range(9)]
    views = [watched("ann", number, hours[number]) for number in range(9)]
    take(tables, views, weighing)
    before = neighbours(tables), totals(tables)
    take(tables, [liked("ann", 4, timedelta(hours=5))], weighing)
    liked_with = {other for one, other in neighbours(tables) if one == video(4)}
    assert liked_with == {video(2), video(3), video(5), video(6)}
    assert neighbours(tables)[video(4), video(5)] > 2 * before[0][video(4), video(5)]
    unlike = Engagement("ann", video(4), EngagementKind.UNLIKED, NOW)
    assert take(tables, [unlike], weighing) == {"ann"}
    assert neighbours(tables) == pytest.approx(before[0])
    assert totals(tables) == pytest.approx(before[1])
    assert take(tables, [unlike, liked("ann", 4, timedelta(hours=5))], weighing) == frozenset()


def test_what_had_its_turn_long_ago_is_paired_with_what_was_around_it(
    tables: Connection[TupleRow],
) -> None:
    """Of ninety videos: whether it is stayed with, liked, or liked no more."""
    weighing, long = Weighing(), timedelta(hours=300)
    views = [watched("ann", number, long - timedelta(hours=number)) for number in range(90)]
    for begin in range(0, 90, 7):
        take(tables, views[begin : begin + 7], weighing)
    (row,) = tables.execute("SELECT parts, cardinality(videos) FROM analytics.viewers")
    assert row == (3, 30)
    for number in (0, 45, 89):
        before = neighbours(tables), totals(tables)
        stays = Engagement("ann", video(number), EngagementKind.STAYED, NOW - timedelta(hours=2))
        take(tables, [stays, liked("ann", number, timedelta(hours=1))], weighing)
        now = neighbours(tables)
        changed = {other for one, other in now if one == video(number) and now[one, other] >= 3}
        around = range(max(number - 20, 0), min(number + 20, 89) + 1)
        assert changed == {video(each) for each in around if each != number}
        take(tables, [Engagement("ann", video(number), EngagementKind.UNLIKED, NOW)], weighing)
        take(tables, [stays], weighing)
        gained = 2 ** -(2 / 720)
        assert totals(tables)[video(number)] == pytest.approx(before[1][video(number)] + gained)
        now = neighbours(tables)
        for other in changed:
            added = now[video(number), other] - before[0][video(number), other]
            assert added == pytest.approx(gained, rel=1e-3)


def test_the_twenty_watched_last_are_listed(tables: Connection[TupleRow]) -> None:
    hour = timedelta(hours=1)
    take(tables, [liked("ann", 100, hour)])
    for number in range(50):
        take(tables, [watched("ann", number, (60 - number) * hour)])
    take(tables, [watched("ann", 3, 2 * hour), watched("ann", 49, 20 * hour)])
    (found,) = tables.execute(
        "SELECT last_watched_ids::text[], last_watched_at FROM analytics.viewers"
    )
    last = {
        each[1]: each[2]
        for each in tables.execute(
            "SELECT viewer, video_id::text, at FROM analytics.watched ORDER BY at DESC LIMIT 20"
        )
    }
    assert found[0] == [video(3), *(video(number) for number in range(49, 30, -1))]
    assert [datetime.fromtimestamp(at, UTC) for at in found[1]] == list(last.values())


def test_an_hour_that_is_full_is_full_for_what_comes_late_too(tables: Connection[TupleRow]) -> None:
    weighing = Weighing(paired_per_hour=10)
    take(tables, [watched("bot", number) for number in range(8)], weighing)
    late = [watched("bot", 100 + number, timedelta(hours=2)) for number in range(8)]
    take(tables, late, weighing)
    (row,) = tables.execute("SELECT engaged, cardinality(videos) FROM analytics.viewers")
    assert row == (16, 10)
    # Also likes that are given and taken back, over and over.
    toggling = [
        liked("bot", 1, -timedelta(seconds=number))._replace(kind=kind)
        for number, kind in enumerate([EngagementKind.LIKED, EngagementKind.UNLIKED] * 9)
    ]
    before = neighbours(tables)
    take(tables, toggling, weighing)
    assert neighbours(tables) == before


def assert_bounded(conn: Connection[TupleRow], weighing: Weighing = WEIGHING) -> None:
    """Lists are as short as they have to be, and so are deltas."""
    lists = conn.execute(
        "SELECT l.neighbours, l.weights, l.as_of FROM analytics.neighbour_lists AS l "
        "JOIN analytics.neighbour_deltas USING (number)"
    ).fetchall()
    (all_lists,) = conn.execute("SELECT count(*) FROM analytics.neighbour_lists").fetchone() or (0,)
    assert len(lists) == all_lists
    for ids, weights, times in lists:
        assert len(ids) == len(weights) == len(times) <= 2 * weighing.neighbours
        assert all(weight > 0 for weight in weights)
    deltas = conn.execute("SELECT neighbours, weights, as_of FROM analytics.neighbour_deltas")
    for ids, weights, times in deltas:
        assert len(ids) == len(weights) == len(times) < weighing.neighbours
        assert all(weight > 0 for weight in weights)


def test_who_watches_for_a_minute_counts_once_more(tables: Connection[TupleRow]) -> None:
    def stays(number: int, seconds: float) -> Engagement:
        at = NOW - timedelta(hours=1) + timedelta(seconds=seconds)
        return Engagement("ann", video(number), EngagementKind.STAYED, at)

    hour = timedelta(hours=1)
    views = [watched("ann", 1, hour), watched("ann", 2, hour)]
    assert take(tables, [*views, stays(1, 10), stays(1, 59), stays(3, 300)]) == {"ann"}
    assert neighbours(tables)[video(1), video(2)] == pytest.approx(1, rel=0.01)
    assert take(tables, [stays(1, 61)]) == {"ann"}
    assert neighbours(tables)[video(1), video(2)] == pytest.approx(2, rel=0.01)
    assert totals(tables) == pytest.approx({video(1): 2, video(2): 1}, rel=0.01)
    # Once, however long, and whatever comes again; and with what comes later.
    assert take(tables, [stays(1, 120), *views, stays(1, 61)]) == frozenset()
    take(tables, [watched("ann", 4)])
    assert neighbours(tables)[video(1), video(4)] == pytest.approx(2, rel=0.01)
    assert_bounded(tables)


def test_the_latest_time_is_kept(tables: Connection[TupleRow]) -> None:
    day = timedelta(days=1)
    assert take(tables, [watched("ann", 1, 2 * day)]) == {"ann"}
    assert take(tables, [watched("ann", 1, day), liked("ann", 1, day)]) == {"ann"}
    assert take(tables, [watched("ann", 1, 3 * day)]) == frozenset()
    found = tables.execute("SELECT viewer, video_id::text, at FROM analytics.watched").fetchall()
    assert found == [("ann", video(1), NOW - day)]


def test_what_is_watched_again_weighs_no_more(tables: Connection[TupleRow]) -> None:
    """Neither in a batch of its own, nor in the same one, nor long after others were watched."""
    weighing = Weighing(paired_with=3)
    begun = [watched("ann", number, timedelta(hours=100 - number)) for number in range(8)]
    again = [watched("ann", 0, timedelta(hours=ago)) for ago in (50, 49, 48)]
    take(tables, begun, weighing)
    before = neighbours(tables), totals(tables)
    for each in again:
        take(tables, [each], weighing)
    take(tables, again + [watched("ann", 0, timedelta(hours=1))] * 2, weighing)
    assert (neighbours(tables), totals(tables)) == before
    tables.execute(TRUNCATE)
    take(tables, [*begun, *again], weighing)
    assert (neighbours(tables), totals(tables)) == before


def test_only_the_last_videos_are_paired(tables: Connection[TupleRow]) -> None:
    weighing = Weighing(paired_with=3)
    hours = [timedelta(hours=100 - number) for number in range(8)]
    take(tables, [watched("ann", number, hours[number]) for number in range(4)], weighing)
    take(tables, [watched("ann", 7, hours[7])], weighing)
    paired = {other for one, other in neighbours(tables) if one == video(7)}
    assert paired == {video(1), video(2), video(3)}


def test_whoever_watches_without_end_costs_no_more(tables: Connection[TupleRow]) -> None:
    """Neither in pairs of one event, nor in those of an hour."""
    weighing = Weighing(paired_with=5, paired_per_hour=10)
    begun = NOW.replace(minute=0, second=0)
    events = [
        Engagement("bot", video(number), EngagementKind.WATCHED, begun + timedelta(seconds=number))
        for number in range(300)
    ]
    for at in range(0, 300, 60):
        take(tables, events[at : at + 60], weighing)
    assert len(neighbours(tables)) == 2 * (1 + 2 + 3 + 4 + 5 * 5)
    (count,) = tables.execute("SELECT count(*) FROM analytics.watched").fetchone() or (0,)
    assert count == 300
    # The next hour is another one.
    later = Engagement("bot", video(301), EngagementKind.WATCHED, begun + timedelta(hours=1))
    take(tables, [later], weighing)
    assert len([one for one, _ in neighbours(tables) if one == video(301)]) == 5


def test_the_best_neighbours_are_kept(tables: Connection[TupleRow]) -> None:
    weighing = Weighing(neighbours=5, popularity_exponent=0.0)
    strong = range(1, 5)
    for viewer in range(3):
        name = f"fan-{viewer}"
        take(tables, [watched(name, 0), *(liked(name, each) for each in strong)], weighing)
    for number in range(10, 40):
        take(tables, [watched(f"v-{number}", 0), watched(f"v-{number}", number)], weighing)
        assert_bounded(tables, weighing)
        kept = {other for one, other in neighbours(tables) if one == video(0)}
        assert kept >= {video(each) for each in strong}


def test_what_is_everywhere_is_cut_first(tables: Connection[TupleRow]) -> None:
    """With weights that are alike, the neighbour that few others watch is the nearer one."""
    weighing = Weighing(neighbours=2, popularity_exponent=0.5)
    take(tables, [watched(f"v-{number}", 0) for number in range(50)], weighing)
    take(tables, [watched("ann", 0), watched("ann", 1), watched("ann", 2)], weighing)
    take(tables, [watched("ann", 3), watched("ann", 4), watched("ann", 5)], weighing)
    kept = {other for one, other in neighbours(tables) if one == video(1)}
    assert len(kept) == 2
    assert video(0) not in kept


def test_removed_neighbours_are_cut_first(tables: Connection[TupleRow]) -> None:
    weighing = Weighing(neighbours=2)
    tables.execute(
        "INSERT INTO analytics.videos (video_id, owner, completed_at, removed) "
        "VALUES (%s, 'o', now(), true)",
        (video(2),),
    )
    take(tables, [liked("bob", 1), liked("bob", 2)], weighing)
    for number in range(3, 8):
        take(tables, [watched(f"v-{number}", 1), watched(f"v-{number}", number)], weighing)
    assert video(2) not in {other for one, other in neighbours(tables) if one == video(1)}


def test_short_half_lives_neither_overflow_nor_vanish(tables: Connection[TupleRow]) -> None:
    weighing = Weighing(half_life=timedelta(minutes=1), neighbours=1)
    old = timedelta(days=3650)
    take(tables, [watched("ann", 1, old), watched("ann", 2, old), watched("ann", 3, old)], weighing)
    take(tables, [watched("bob", 1), watched("bob", 2), watched("bob", 4)], weighing)
    take(tables, [watched("eve", 1, old), watched("eve", 4, old)], weighing)
    rows = tables.execute("SELECT min(weight), max(weight) FROM analytics.neighbours").fetchone()
    assert rows is not None
    assert 0 < rows[0] <= rows[1] < 10


def test_categories_are_ranked(tables: Connection[TupleRow]) -> None:
    rows = [
        (video(number), "art" if number < 4 else "music", number == 2) for number in range(1, 6)
    ]
    with tables.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO analytics.videos (video_id, owner, category, completed_at, removed) "
            "VALUES (%s, 'owner', %s, now(), %s)",
            rows,
        )
    take(tables, [watched(f"v-{number}", number) for number in range(1, 5)])
    take(tables, [liked("ann", 3), liked("ann", 2), watched("bob", 4, LONG_AGO)])
    for _ in range(2):
        rank_categories(tables, WEIGHING)
    found = tables.execute(
        "SELECT category, place, video_id::text FROM analytics.category_tops ORDER BY 1, 2"
    ).fetchall()
    whole = [("", 1, video(3)), ("", 2, video(4)), ("", 3, video(1))]
    assert found == [*whole, ("art", 1, video(3)), ("art", 2, video(1)), ("music", 1, video(4))]


def test_what_is_new_is_ranked_before_what_was_as_popular(tables: Connection[TupleRow]) -> None:
    for number, days in ((1, 70), (2, 1), (3, 70), (4, 700)):
        tables.execute(
            "INSERT INTO analytics.videos (video_id, owner, completed_at) VALUES (%s, 'owner', %s)",
            (video(number), NOW - timedelta(days=days)),
        )
    fans = {1: 5, 2: 1, 3: 20, 4: 6}
    for number, count in fans.items():
        take(tables, [watched(f"v-{number}-{each}", number) for each in range(count)])
    rank_categories(tables, WEIGHING)
    found = tables.execute("SELECT video_id::text FROM analytics.category_tops ORDER BY place")
    assert [each for (each,) in found] == [video(number) for number in (3, 2, 4, 1)]

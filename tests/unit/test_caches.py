"""What a process keeps of its answers: bounded, and the same as what it was made of."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.log import END_OF_LOG
from engine.tail import Lru
from infra.http.shapes import Position
from projections.analytics.calendar import DAY, HOUR
from projections.analytics.periods import Counts
from projections.analytics.queries import Bucket, Range, Reached, Stats
from readapi import video_lists
from readapi.analytics import stats_as_json
from readapi.stats import Figures, FiguresAt, VideoStats
from readapi.video_lists import Listed, ListSegment, VideoLists

NOW = datetime(2026, 11, 30, 12, 34, 56, tzinfo=UTC)
NOWHERE = Reached(Position(1), 1)


def test_the_sizes_of_all_entries_are_bounded() -> None:
    kept: Lru[str, bytes] = Lru(10, "stats", len)
    for key in "abc":
        kept.put(key, b"....")
    assert [kept.peek(key) for key in "abc"] == [None, b"....", b"...."]
    # Instead of the entry before, and then beside what is dropped.
    kept.put("b", b".")
    kept.drop("c")
    for key in "de":
        kept.put(key, b"....")
    assert [kept.peek(key) for key in "bcde"] == [b".", None, b"....", b"...."]
    kept.put("f", b"." * 11)
    assert not list(kept.values())
    kept.put("g", b"." * 10)
    kept.clear()
    kept.put("h", b"." * 10)
    assert list(kept.values()) == [b"." * 10]


class Catalog:
    """The videos of a list by position, and a memory of the list that is told of each change."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.lists = VideoLists()
        self.most = dice.randint(4, 9)
        self.videos = {position: uuid4() for position in dice.sample(range(1, 200), 40)}
        self.hidden: set[int] = set()
        self.reads = 0

    def read(self, before: int, limit: int) -> list[Listed]:
        found = sorted(self.videos.items(), reverse=True)
        rows = [Listed(v, at) for at, v in found if at < before and at not in self.hidden]
        return rows[:limit]

    def ask(self, before: int, limit: int) -> list[Listed]:
        rows, missing = self.lists.page("all", before, limit)
        if missing is None:
            return rows
        self.reads += 1
        segment = ListSegment(self.read(missing, self.most), missing, self.most)
        self.lists.put("all", segment, self.lists.changes)
        return rows + segment.rows(missing, limit - len(rows))

    def change(self) -> None:
        position = self.dice.choice(list(self.videos))
        kind = self.dice.randrange(3)
        if kind == 0:
            position = max(self.videos) + self.dice.randint(1, 5)
            self.videos[position] = uuid4()
        elif kind == 1:
            del self.videos[position]
        else:
            self.hidden ^= {position}
        self.lists.change(position)


@pytest.mark.parametrize("seed", range(20))
def test_a_list_in_memory_is_the_list(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked for in whichever order, and whatever changes."""
    dice = random.Random(seed)
    monkeypatch.setattr(video_lists, "LEAST_LISTED", 0)
    monkeypatch.setattr(video_lists, "MOST_LISTED", dice.choice([15, 60, 1_000]))
    catalog = Catalog(dice)
    for _ in range(300):
        before = dice.choice([END_OF_LOG, 0, 1, *range(1, 220, 3), *catalog.videos])
        limit = dice.randint(1, catalog.most)
        assert catalog.ask(before, limit) == catalog.read(before, limit)
        assert catalog.lists._held <= video_lists.MOST_LISTED
        if dice.random() < 0.1:
            catalog.change()


def test_most_pages_lie_within_what_was_read() -> None:
    catalog = Catalog(random.Random(1))
    catalog.most = 30
    for _ in range(2):
        before, pages = END_OF_LOG, 0
        while rows := catalog.ask(before, 4):
            before, pages = rows[-1].position, pages + 1
        assert pages == 10
    assert catalog.reads == 2
    # What changed lies in the first segment: the other one is as it was.
    catalog.lists.change(max(catalog.videos))
    assert catalog.ask(END_OF_LOG, 4) == catalog.read(END_OF_LOG, 4)
    assert catalog.reads == 3
    assert catalog.ask(min(catalog.videos) + 1, 4) == catalog.read(min(catalog.videos) + 1, 4)
    assert catalog.reads == 3


def test_what_was_read_before_a_change_is_not_kept() -> None:
    lists = VideoLists()
    segment = ListSegment([(uuid4(), 5)], END_OF_LOG, 10)
    before = lists.changes
    lists.change(3)
    lists.put("all", segment, before)
    assert lists.page("all", END_OF_LOG, 1) == ([], END_OF_LOG)
    lists.put("all", segment, lists.changes)
    assert lists.page("all", END_OF_LOG, 2) == (segment.rows(END_OF_LOG, 2), None)
    lists.clear()
    assert lists.page("all", END_OF_LOG, 1) == ([], END_OF_LOG)


COUNTS = st.tuples(*4 * [st.integers(0, 10**12)], st.floats(0, 1e12))


@given(
    range_=st.sampled_from(Range),
    bucket=st.sampled_from(Bucket),
    buckets=st.integers(1, 60),
    untold=st.integers(0, 60),
    happened=st.dictionaries(st.integers(0, 59), COUNTS),
)
def test_stats_are_told_as_their_shape_tells_them(
    range_: Range,
    bucket: Bucket,
    buckets: int,
    untold: int,
    happened: dict[int, tuple[int, int, int, int, float]],
) -> None:
    step = HOUR if bucket is Bucket.HOUR else DAY
    last = NOW.replace(minute=0, second=0, hour=NOW.hour if bucket is Bucket.HOUR else 0)
    first = last - (buckets - 1) * step
    told_from = first + untold * step - timedelta(minutes=1) if bucket is Bucket.DAY else None

    def point(place: int) -> Counts:
        at = first + place * step
        viewers = 3 if told_from is not None and at >= told_from else None
        if place not in happened:
            return Counts(at, 0, 0, 0, 0, 0.0, viewers and 0)
        return Counts(at, *happened[place], viewers)

    series = [point(place) for place in range(buckets)]
    counted = [series[place] for place in sorted(happened) if place < buckets]
    totals = Counts(first, 10, 2, 3, 4, 5.5, 7)
    stats, video = Stats(totals, counted, first, NOW, step, told_from), uuid4()
    told = stats_as_json(video, range_, bucket, stats, NOWHERE).told()
    shape = VideoStats(
        video_id=video,
        time_range=range_.value,
        bucket=bucket.value,
        since=first,
        totals=Figures.model_validate(totals, from_attributes=True),
        series=[FiguresAt.model_validate(each, from_attributes=True) for each in series],
    )
    assert json.loads(told) == json.loads(shape.to_json())


def test_stats_take_little_memory() -> None:
    """Of a video of which little happened in most hours."""
    first = NOW.replace(minute=0, second=0) - 168 * HOUR
    counted = [Counts(first + 8 * n * HOUR, n, 0, 0, 0, 1.5) for n in range(20)]
    stats = Stats(Counts(first, 1, 0, 0, 0, 0.0, 1), counted, first, NOW, HOUR, None)
    kept = stats_as_json(UUID(int=1), Range.WEEK, Bucket.HOUR, stats, NOWHERE)
    assert len(kept.told()) > 10_000
    assert kept.size < 3_500

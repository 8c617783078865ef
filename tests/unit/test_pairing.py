"""What engagements come to, in any order: against each two of those that stand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import combinations
from random import Random
from typing import TypeVar

import pytest

from projections.recommendations.co_occurrence import Engagement, Pairing, VideoNumbers
from projections.recommendations.model import EngagementKind, Weighing
from projections.recommendations.neighbours import Mass
from projections.recommendations.turns import Viewer

K = TypeVar("K")

NOW = datetime(2026, 3, 14, tzinfo=UTC)
DAY = timedelta(days=1)
WEIGHING = Weighing()


def streams_of(random: Random) -> tuple[list[list[Engagement]], list[Engagement]]:
    """Views and likes of four viewers, some taken back, some of those given again; what stands."""
    streams, standing = [], []
    for viewer in range(4):
        for video in range(12):
            for kind in (EngagementKind.WATCHED, EngagementKind.LIKED):
                if random.random() < 0.4:
                    continue
                at = NOW - (3 + random.random() * 100) * DAY
                stream = [Engagement(f"viewer-{viewer}", f"video-{video:02}", kind, at)]
                if kind is EngagementKind.LIKED and random.random() < 0.6:
                    stream.append(stream[0]._replace(kind=EngagementKind.UNLIKED, at=at + DAY))
                    if random.random() < 0.5:
                        stream.append(stream[0]._replace(at=at + 2 * DAY))
                streams.append(stream)
                if stream[-1].kind is not EngagementKind.UNLIKED:
                    standing.append(stream[-1])
    return streams, standing


def between_each_other(random: Random, streams: Sequence[Sequence[Engagement]]) -> list[Engagement]:
    """Each stream in its own order."""
    placed: list[tuple[float, Engagement]] = []
    for stream in streams:
        placed += zip(sorted(random.random() for _ in stream), stream, strict=True)
    return [event for _, event in sorted(placed, key=lambda each: each[0])]


def faded(mass: Mass) -> float:
    return float(mass.weight * 2 ** ((mass.as_of - NOW.timestamp()) / WEIGHING.half_life_seconds))


def left(masses: Mapping[K, Mass]) -> dict[K, float]:
    return {key: faded(mass) for key, mass in masses.items() if abs(faded(mass)) > 1e-9}


def weight_now(at: datetime, weight: float) -> float:
    return faded(Mass(weight, at.timestamp()))


@pytest.mark.parametrize("seed", range(10))
def test_what_is_taken_back_might_never_have_been(seed: int) -> None:
    random = Random(seed)
    streams, standing = streams_of(random)
    numbers = VideoNumbers({}, 0)
    pairing = Pairing(WEIGHING, defaultdict(Viewer), {}, numbers)
    events = between_each_other(random, streams)
    # All of it a second time changes nothing.
    for event in (*events, *events):
        pairing.take(event)
    pairs: defaultdict[tuple[int, int], float] = defaultdict(float)
    gained: defaultdict[str, float] = defaultdict(float)
    for event in standing:
        gained[event.video_id] += weight_now(event.at, WEIGHING.of(event.kind))
    for one, other in combinations(standing, 2):
        if one.viewer == other.viewer and one.video_id != other.video_id:
            lesser, greater = sorted((numbers[one.video_id], numbers[other.video_id]))
            weight = WEIGHING.of(one.kind) * WEIGHING.of(other.kind)
            pairs[lesser, greater] += weight_now(max(one.at, other.at), weight)
    assert left(pairing.pairs) == pytest.approx(dict(pairs))
    assert left(pairing.gained) == pytest.approx(dict(gained))

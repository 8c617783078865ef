"""The types of the recommendations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import chain
from math import log
from typing import NamedTuple
from uuid import UUID

from domain.feedback import Signal, Variant
from infra.settings.features import RecommendationSettings

VideoKey = bytes
"""The 16 bytes of a video's id: they are ordered as ids are, and are far quicker to compare."""

MOST_WATCHED = 20
"""So many videos, those watched last, are of a profile."""


class RecommendationSource(StrEnum):
    """What made an answer; the first one that could."""

    LLM = "llm"
    BLEND = "blend"
    TRENDING = "trending"


class EngagedVideo(NamedTuple):
    """A video that the user watched or likes, and when that was last."""

    video_id: UUID
    at: datetime


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known of a user: videos watched (20 at most) and liked (10 at most), newest first."""

    user_id: str
    watched: Sequence[EngagedVideo] = ()
    liked: Sequence[EngagedVideo] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known: a new user."""
        return not self.watched and not self.liked

    @property
    def latest(self) -> datetime | None:
        """When the user was last there, as far as is known."""
        return max((each.at for each in (*self.watched, *self.liked)), default=None)

    def newest(self) -> list[UUID]:
        """Return all videos, each once, the latest engagement first."""
        known = sorted([*self.liked, *self.watched], key=lambda each: each.at, reverse=True)
        return list(dict.fromkeys(each.video_id for each in known))


class Candidate(NamedTuple):
    """A video that may be recommended, and why; each signal from 0 to 1.

    A signal is the video's share of all that was found by it, so that each is a guess at how likely
    the video is the next one. `because` is the video of the profile that it is the closest
    neighbour of, if of any.
    """

    video_id: UUID
    category: str | None
    trending: float = 0.0
    neighbour: float = 0.0
    same_category: float = 0.0
    similar: float = 0.0
    because: UUID | None = None
    popular: float = 0.0


# Not frozen: to make a frozen one takes four times as long.
@dataclass(slots=True)
class RankedVideo:
    """A video in its place: the higher its score the earlier; `reason` is for people.

    `because` is the video whose title the reason tells, if it does; `by_model` whether a language
    model has worded it; `signal` what brought it there before any model was asked; `variant` by
    which settings.
    """

    video_id: UUID
    score: float
    reason: str
    because: UUID | None = None
    by_model: bool = False
    signal: Signal = Signal.OTHER
    variant: Variant = Variant.DEFAULT

    @property
    def source(self) -> Signal:
        """What mainly brought it there."""
        return Signal.LLM if self.by_model else self.signal


@dataclass(frozen=True, slots=True)
class RankedRecommendations:
    """The best first; `whole` unless something failed that may work again soon.

    `told` are title and category, as they were, of the videos that the reasons may name. `rival` is
    the order by the settings that are compared with these, in the `experiment` of that number.
    """

    source: RecommendationSource
    items: tuple[RankedVideo, ...]
    whole: bool
    told: Mapping[UUID, tuple[str, str | None]] = field(default_factory=dict)
    rival: tuple[RankedVideo, ...] | None = None
    experiment: int | None = None

    @property
    def orders(self) -> list[tuple[RankedVideo, ...]]:
        """The order, and the one that it is compared with if there is one."""
        return [self.items] if self.rival is None else [self.items, self.rival]

    @property
    def offered(self) -> Iterator[RankedVideo]:
        """All that either order has."""
        return chain.from_iterable(self.orders)

    def beginning(self, most: int) -> RankedRecommendations:
        """Return the first of the order, if that can be shown without knowing the others.

        It can't where two orders are compared, or where a language model wrote the reasons.
        """
        if most >= len(self.items) or self.rival is not None or self.by_model:
            return self
        items = self.items[:most]
        named = {video for each in items for video in (each.video_id, each.because) if video}
        told = {video: each for video in named if (each := self.told.get(video)) is not None}
        return replace(self, items=items, told=told)

    @property
    def by_model(self) -> bool:
        """Whether a language model has worded anything."""
        return self.source is RecommendationSource.LLM

    def reordered(
        self, order: Callable[[Sequence[RankedVideo]], Iterable[RankedVideo]]
    ) -> RankedRecommendations:
        """Return the same with what `order` makes of each order."""
        rival = None if self.rival is None else tuple(order(self.rival))
        return replace(self, items=tuple(order(self.items)), rival=rival)


class DescribedVideo(NamedTuple):
    """What a language model may know of a video; all of it is other people's text."""

    video_id: UUID
    title: str
    description: str | None = None
    category: str | None = None
    transcript: str | None = None


@dataclass(frozen=True, slots=True)
class Material:
    """What a ranking is made of.

    How much the profile is `telling` still, and how `sure` its neighbours are, both from 0 to 1;
    `interest` is by what the scores of some categories are multiplied.
    """

    profile: Profile
    candidates: Sequence[Candidate]
    described: dict[UUID, DescribedVideo] = field(default_factory=dict)
    interest: Mapping[str, float] = field(default_factory=dict)
    telling: float = 1.0
    sure: float = 1.0


class EngagementKind(StrEnum):
    """How a viewer engaged with a video: who stays has watched it for `Weighing.long_enough`.

    An unlike takes back what the like brought.
    """

    WATCHED = "watched"
    STAYED = "stayed"
    LIKED = "liked"
    UNLIKED = "unliked"


@dataclass(frozen=True, slots=True)
class Weighing:
    """`half_life` is that of what two videos have in common, and of what they are divided by.

    A video is paired with the viewer's `paired_with` videos before it and after it, unless the
    viewer has more than `paired_per_hour` new ones in its hour. About the best `neighbours` of a
    video are kept: twice as many at most, which are cut when there are more.
    """

    watched: float = 1.0
    stayed: float = 1.0
    liked: float = 2.0
    long_enough: timedelta = timedelta(minutes=1)
    half_life: timedelta = timedelta(days=30)
    paired_with: int = 20
    paired_per_hour: int = 300
    neighbours: int = 50
    category_tops: int = 100
    # From 0 (the most popular are everybody's neighbours) to 1 (popularity counts for nothing).
    popularity_exponent: float = 0.2
    # The same for the videos of the profile: what everybody has watched tells little of a user.
    profile_exponent: float = 0.5
    # The n-th video of the profile counts 1 / n to this power.
    profile_fade: float = 1.0
    # What a profile tells is half after so long without an engagement, a third after twice that.
    profile_half: timedelta = timedelta(days=7)
    # Neighbours count half where so much brought them together.
    sure_pairs: float = 300.0
    # What a video's age leaves halves so often, down to the floor, until the site tells otherwise.
    fresh_half_life: timedelta = timedelta(days=7)
    fresh_floor: float = 0.1

    @classmethod
    def from_settings(cls, settings: RecommendationSettings) -> Weighing:
        return cls(half_life=timedelta(days=settings.half_life_days))

    def sure(self, pairs: float) -> float:
        """Return how sure neighbours are that so much brought together.

        Rounded, since a sum in any order differs in its last digits.
        """
        return round(pairs / (pairs + self.sure_pairs), 9)

    @property
    def half_life_seconds(self) -> float:
        return self.half_life.total_seconds()

    @property
    def decay(self) -> float:
        """What a weight loses in a second, in logarithms."""
        return log(2) / self.half_life_seconds

    def fresh(self, age_seconds: float) -> float:
        """Return what is left of the attention for a video of that age, from the floor to 1."""
        halvings = max(age_seconds, 0.0) / self.fresh_half_life.total_seconds()
        return max(self.fresh_floor, float(2.0**-halvings))

    def telling(self, away_seconds: float) -> float:
        """Return how much the profile of a user who was away for so long tells still."""
        return 1 / (1 + max(away_seconds, 0.0) / self.profile_half.total_seconds())

    def of(self, kind: EngagementKind) -> float:
        """Return what one engagement of this kind weighs; what an unlike takes back is a like's."""
        if kind is EngagementKind.WATCHED:
            return self.watched
        return self.stayed if kind is EngagementKind.STAYED else self.liked

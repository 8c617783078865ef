"""The types of the recommendations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from domain.feedback import Signal, Variant
from infra.settings.features import RecommendationSettings


class RecommendationSource(StrEnum):
    """What made an answer; the first one that could."""

    LLM = "llm"
    BLEND = "blend"
    TRENDING = "trending"


@dataclass(frozen=True, slots=True)
class EngagedVideo:
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

    def without(self, videos: Collection[UUID]) -> Profile:
        """Return the profile without some videos."""
        watched = [each for each in self.watched if each.video_id not in videos]
        liked = [each for each in self.liked if each.video_id not in videos]
        return Profile(self.user_id, watched, liked)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A video that may be recommended, and why; each signal from 0 (none) to 1 (the strongest).

    `because` is the video of the profile that it is the closest neighbour of, if of any.
    """

    video_id: UUID
    category: str | None
    trending: float = 0.0
    neighbour: float = 0.0
    same_category: float = 0.0
    similar: float = 0.0
    because: UUID | None = None


@dataclass(frozen=True, slots=True)
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

    def reordered(
        self, order: Callable[[Sequence[RankedVideo]], Iterable[RankedVideo]]
    ) -> RankedRecommendations:
        """Return the same with what `order` makes of each order."""
        rival = None if self.rival is None else tuple(order(self.rival))
        return replace(self, items=tuple(order(self.items)), rival=rival)


@dataclass(frozen=True, slots=True)
class DescribedVideo:
    """What a language model may know of a video; all of it is other people's text."""

    video_id: UUID
    title: str
    description: str | None = None
    category: str | None = None
    transcript: str | None = None


@dataclass(frozen=True, slots=True)
class Material:
    """What a ranking is made of.

    `interest` is by what the scores of some categories are multiplied.
    """

    profile: Profile
    candidates: Sequence[Candidate]
    described: dict[UUID, DescribedVideo] = field(default_factory=dict)
    interest: Mapping[str, float] = field(default_factory=dict)

    def interest_in(self, candidate: Candidate) -> float:
        """Return by what the candidate's score is multiplied."""
        return self.interest.get(candidate.category or "", 1.0)


class EngagementKind(StrEnum):
    """How a viewer engaged with a video."""

    WATCHED = "watched"
    LIKED = "liked"


@dataclass(frozen=True, slots=True)
class Weighing:
    """`half_life` is that of what two videos have in common, and of what they are divided by.

    An engagement is paired with the viewer's last `paired_with` other videos, unless the viewer
    has more than `paired_per_hour` new ones in its hour. About the best `neighbours` of a video
    are kept: twice as many at most, which are cut when there are more.
    """

    watched: float = 1.0
    liked: float = 2.0
    half_life: timedelta = timedelta(days=30)
    paired_with: int = 20
    paired_per_hour: int = 60
    neighbours: int = 50
    category_tops: int = 100
    # From 0 (the most popular are everybody's neighbours) to 1 (popularity counts for nothing).
    popularity_exponent: float = 0.5
    # Each video before it in the profile makes a video's neighbours count so much less.
    profile_fade: float = 0.9

    @classmethod
    def from_settings(cls, settings: RecommendationSettings) -> Weighing:
        return cls(half_life=timedelta(days=settings.half_life_days))

    @property
    def half_life_seconds(self) -> float:
        return self.half_life.total_seconds()

    def of(self, kind: EngagementKind) -> float:
        """Return what one engagement of this kind weighs."""
        return self.liked if kind is EngagementKind.LIKED else self.watched

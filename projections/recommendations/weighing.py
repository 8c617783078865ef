"""What weighs how much in the recommendations' data: every number that may be tuned."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from infra.settings.features import RecommendationSettings


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
        """What one engagement of this kind weighs."""
        return self.liked if kind is EngagementKind.LIKED else self.watched

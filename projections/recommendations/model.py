"""What the parts of the recommendations hand to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID


class RecommendationSource(StrEnum):
    """What made an answer; the first one that could."""

    LLM = "llm"
    BLEND = "blend"
    TRENDING = "trending"


@dataclass(frozen=True, slots=True)
class Engaged:
    """A video that the user watched or likes, and when that was last."""

    video_id: UUID
    at: datetime


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known of a user: videos watched (20 at most) and liked (10 at most), newest first."""

    user_id: str
    watched: Sequence[Engaged] = ()
    liked: Sequence[Engaged] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known: a new user."""
        return not self.watched and not self.liked


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
class Recommended:
    """A video in its place: the higher its score the earlier; `reason` is for people.

    `because` is the video whose title the reason tells, if it does; `by_model` whether a language
    model has worded it.
    """

    video_id: UUID
    score: float
    reason: str
    because: UUID | None = None
    by_model: bool = False


@dataclass(frozen=True, slots=True)
class RankedRecommendations:
    """The best first; `whole` unless something failed that may work again soon.

    `told` are title and category, as they were, of the videos that the reasons may name.
    """

    source: RecommendationSource
    items: tuple[Recommended, ...]
    whole: bool
    told: Mapping[UUID, tuple[str, str | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Described:
    """What a language model may know of a video; all of it is other people's text."""

    video_id: UUID
    title: str
    description: str | None = None
    category: str | None = None
    transcript: str | None = None
    spoken_language: str | None = None


@dataclass(frozen=True, slots=True)
class Material:
    """All that a ranking is made of."""

    profile: Profile
    candidates: Sequence[Candidate]
    described: dict[UUID, Described] = field(default_factory=dict)

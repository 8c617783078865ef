"""The product as a contender, and what can be had at most on a made-up community."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import islice
from random import Random
from uuid import UUID

from benchmarks.community import Community
from benchmarks.evaluation import CatalogContender, Question, Ranking
from benchmarks.history import Event, Film
from benchmarks.hostile import HOSTILE, fuse_hostile
from benchmarks.measures import DEPTH
from benchmarks.product import Answer, Product

TREND, BLEND, TASTE = "trending", "blend", "by the true tastes"


class ProductContender:
    """What trends, the blend, and the blend with a hostile model's order fused in."""

    def __init__(self, product: Product, seed: int, *, hostile: bool = False) -> None:
        self._product = product
        self._chance = Random(seed)
        self._hostile = HOSTILE if hostile else {}
        self.names: Sequence[str] = (TREND, BLEND, *self._hostile)
        self._newest: list[UUID] = []
        self.answers: dict[Question, Answer] = {}

    def publish(self, film: Film) -> None:
        self._product.publish(film)
        self._newest.append(film.video_id)

    def take(self, event: Event) -> None:
        self._product.take(event)

    def fit(self, at: datetime) -> None:
        """The product learns all the time."""

    def rank(self, question: Question) -> Mapping[str, Ranking]:
        most = len(question.seen) + DEPTH
        answer = self._product.ask(question.user, question.at, trending=most)
        trending = [each.video_id for each in answer.trending]
        blended = [each.video_id for each in answer.blended]
        if self._hostile:
            self.answers[question] = answer
        return {
            TREND: _unseen(trending, question),
            # Where there are few candidates, the newest videos follow.
            BLEND: _unseen(list(dict.fromkeys([*blended, *reversed(self._newest)])), question),
            **{
                name: fuse_hostile(answer.blended, order, self._chance)
                for name, order in self._hostile.items()
            },
        }


def _unseen(videos: Sequence[UUID], question: Question) -> Ranking:
    return list(islice((video for video in videos if video not in question.seen), DEPTH))


class Taste(CatalogContender):
    """The likeliest by the true tastes, in the middle of the time that is asked about."""

    names = (TASTE,)

    def __init__(self, community: Community) -> None:
        super().__init__()
        self._community = community

    def rank(self, question: Question) -> Mapping[str, Ranking]:
        day = (self._community.day_of(question.at) + self._community.shape.days) // 2
        wanted = self._community.wanted(question.user, day)
        left = [video for video in self.videos if video not in question.seen]
        return {TASTE: sorted(left, key=lambda video: -wanted[video])[:DEPTH]}

"""How well recommendations guess what is watched next: a history is cut, its end is asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from random import Random
from statistics import mean
from uuid import UUID

from psycopg import AsyncConnection

from benchmarks.community import Community, History, View
from benchmarks.measures import DEPTH, coverage, ndcg, recall
from projections.recommendations.candidates import candidates_for
from projections.recommendations.model import (
    DescribedVideo,
    EngagedVideo,
    Material,
    Profile,
    Weighing,
)
from projections.recommendations.prompt import MOST_LIKED, MOST_WATCHED
from projections.recommendations.recommender import MOST
from projections.trending import Formula, Ranked, Trending, Window

# More than anybody has watched of what trends, so that ten are left to be shown.
TRENDING = 200

Answers = Sequence[Sequence[UUID]]


@dataclass(frozen=True, slots=True)
class Question:
    """What does this user watch next? `relevant` is the answer: watched for the first time then."""

    user: str
    seen: frozenset[UUID]
    relevant: frozenset[UUID]


@dataclass(frozen=True, slots=True)
class Split:
    """What had happened `at` that time, and what is asked about the time after it."""

    at: datetime
    past: History
    questions: Sequence[Question]

    @property
    def videos(self) -> list[UUID]:
        return [film.video_id for film in self.past.films]


def split(history: History, at: datetime) -> Split:
    """Cut a history. Only videos that were there `at` that time count: nobody can guess others.

    There is no question about who watches none of these for the first time.
    """
    films = [film for film in history.films if film.since < at]
    past = [view for view in history.views if view.at < at]
    seen = _videos(past)
    later = _videos(view for view in history.views if view.at >= at)
    there = {film.video_id for film in films}
    questions = [
        Question(user, frozenset(seen[user]), frozenset(found))
        for user, videos in sorted(later.items())
        if (found := (videos & there) - seen[user])
    ]
    return Split(at, History(films, past), questions)


@dataclass(frozen=True, slots=True)
class Scores:
    """Means over the questions, of the first ten; the coverage is that of all answers together."""

    ndcg: float
    recall: float
    coverage: float


def judge(told: Split, answers: Answers) -> Scores:
    """How good the answers to the questions are; both in the same order."""
    pairs = list(zip(told.questions, answers, strict=True))
    return Scores(
        mean(ndcg(answer, question.relevant) for question, answer in pairs),
        mean(recall(answer, question.relevant) for question, answer in pairs),
        coverage(answers, told.videos),
    )


def by_chance(told: Split, seed: int) -> Answers:
    """Videos that the user has not watched, drawn evenly."""
    chance = Random(seed)
    left = ([video for video in told.videos if video not in each.seen] for each in told.questions)
    return [chance.sample(videos, min(DEPTH, len(videos))) for videos in left]


def by_trend(told: Split, trending: Sequence[Ranked]) -> Answers:
    """The first of what trends that the user has not watched."""
    ranked = [each.video_id for each in trending]
    return [
        list(islice((video for video in ranked if video not in each.seen), DEPTH))
        for each in told.questions
    ]


def by_taste(told: Split, community: Community) -> Answers:
    """The likeliest by the true tastes, in the middle of the time that is asked about."""
    day = (community.day_of(told.at) + community.shape.days) // 2
    answers = []
    for question in told.questions:
        wanted = community.wanted(question.user, day)
        left = [video for video in told.videos if video not in question.seen]
        answers.append(sorted(left, key=lambda video: -wanted[video])[:DEPTH])
    return answers


async def trends(url: str, at: datetime) -> list[Ranked]:
    """What trended in the month before that time."""
    async with await AsyncConnection.connect(url, autocommit=True) as conn:
        return await Trending(Formula()).rank(conn, Window.MONTH, limit=TRENDING, now=at)


async def materials(
    url: str, told: Split, trending: Sequence[Ranked], weighing: Weighing
) -> list[Material]:
    """What each question's ranking is made of, as the database has it."""
    described = {
        film.video_id: DescribedVideo(film.video_id, film.title, category=film.category)
        for film in told.past.films
    }
    profiles = _profiles(told.past.views)
    found = []
    async with await AsyncConnection.connect(url, autocommit=True) as conn:
        for question in told.questions:
            profile = profiles.get(question.user, Profile(question.user))
            candidates = await candidates_for(conn, profile, trending[:MOST], weighing=weighing)
            found.append(Material(profile, candidates, described))
    return found


def _profiles(views: Iterable[View]) -> Mapping[str, Profile]:
    """What is known of each user; the views are in order of time."""
    watched: defaultdict[str, list[EngagedVideo]] = defaultdict(list)
    liked: defaultdict[str, list[EngagedVideo]] = defaultdict(list)
    for view in views:
        engaged = EngagedVideo(view.video_id, view.at)
        if view.seconds is not None:
            watched[view.user].append(engaged)
        if view.liked:
            liked[view.user].append(engaged)
    return {
        user: Profile(
            user, watched[user][: -MOST_WATCHED - 1 : -1], liked[user][: -MOST_LIKED - 1 : -1]
        )
        for user in {*watched, *liked}
    }


def _videos(views: Iterable[View]) -> defaultdict[str, set[UUID]]:
    found: defaultdict[str, set[UUID]] = defaultdict(set)
    for view in views:
        found[view.user].add(view.video_id)
    return found

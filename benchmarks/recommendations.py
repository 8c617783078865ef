"""Recommendations against chance, against what trends, and against a language model.

What is asked for is the end of a history: of made-up communities whose tastes are known, or of
one's own, from the export that RECOMMENDATIONS_HISTORY names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from uuid import UUID

import uvloop

from benchmarks.bench import Bench, say
from benchmarks.community import Community, History, Shape, make_community
from benchmarks.exported import exported
from benchmarks.hostile import HOSTILE, fused
from benchmarks.judging import (
    Answers,
    Scores,
    Split,
    by_chance,
    by_taste,
    by_trend,
    judge,
    materials,
    split,
    trends,
)
from benchmarks.measures import DEPTH
from benchmarks.remembering import remember
from benchmarks.results import Comparison, Side
from infra.errors import OperatorError
from infra.llm.client import make_language_model
from infra.llm.errors import LanguageModelError
from infra.settings import Settings, load_settings
from projections.recommendations.model import Material, RankedVideo, Weighing
from projections.recommendations.ranker import Ranker, fuse
from projections.recommendations.recommender import blend

SEEDS = (301, 302, 303, 304, 305)
"""Not those by which the numbers of the blend were chosen."""
SMALL = Shape(users=240, videos=300, topics=12, days=28, sittings_per_week=4.0)
HELD = timedelta(days=4)
EXPORT = "RECOMMENDATIONS_HISTORY"
ASKED = 40
"""So many users are asked about where each answer is paid for."""
UNIT = f"NDCG@{DEPTH}"
CHANCE, TREND, BLEND = "random videos", "trending", "blend"
TASTE, MODEL = "by the true tastes", "blend and language model"

Found = Mapping[str, Scores]


def run(bench: Bench) -> list[Comparison]:
    """A value per community; recall@10 and coverage beside it."""
    shape, seeds = (SMALL, SEEDS[:1]) if bench.quick else (Shape(), SEEDS)
    until = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    found = []
    for seed in seeds:
        community = make_community(seed, shape, until=until)
        told = split(community.history, until - HELD)
        say(f"seed {seed}: {len(told.questions)} users are asked about")
        found.append(measured(bench.database(), told, seed, community))
    path = os.environ.get(EXPORT)
    return [*_compare(found), *([] if path is None else _own(bench, Path(path)))]


def measured(url: str, told: Split, seed: int, community: Community | None = None) -> Found:
    """All contenders on one history, whose past is put into this empty database."""
    weighing = Weighing()
    remember(url, told.past, weighing)
    trending = uvloop.run(trends(url, told.at))
    known = uvloop.run(materials(url, told, trending, weighing))
    blended = [blend(each, limit=len(each.candidates)) for each in known]
    answers: dict[str, Answers] = {
        CHANCE: by_chance(told, seed),
        TREND: by_trend(told, trending),
        BLEND: _videos(blended),
        **{name: fused(blended, hostile, seed) for name, hostile in HOSTILE.items()},
    }
    if community is not None:
        answers[TASTE] = by_taste(told, community)
    scores = {name: judge(told, each) for name, each in answers.items()}
    settings = load_settings(os.environ)
    if settings.llm.configured:
        scores |= uvloop.run(_asked(settings, told, known, blended))
    return scores


async def _asked(
    settings: Settings,
    told: Split,
    known: Sequence[Material],
    blended: Sequence[Sequence[RankedVideo]],
) -> Found:
    """The language model's order fused with the blend, and the blend for the same users alone."""
    llm = make_language_model(settings.llm)
    if llm is None:
        raise RuntimeError("there is a provider")
    ranker, failed = Ranker(llm, settings.recommendations.model), 0
    answers: list[Sequence[RankedVideo]] = []
    try:
        for material, order in list(zip(known, blended, strict=True))[:ASKED]:
            try:
                answers.append(fuse(order, await ranker.rank(material, DEPTH)))
            except LanguageModelError:
                # As users have it then.
                answers.append(order)
                failed += 1
    finally:
        await ranker.aclose()
    say(f"the language model was asked {len(answers)} times, {failed} times in vain")
    asked = Split(told.at, told.past, told.questions[:ASKED])
    alone = f"{BLEND}, the same users"
    return {
        MODEL: judge(asked, _videos(answers)),
        alone: judge(asked, _videos(blended[:ASKED])),
    }


def _own(bench: Bench, path: Path) -> list[Comparison]:
    """The last tenth of one's own history."""
    history = exported(path)
    if not history.views:
        raise OperatorError(f"{path} holds no likes of videos: there is nothing to guess.")
    told = split(history, _last_tenth(history))
    if not told.questions:
        raise OperatorError(f"Nobody likes an older video in the last tenth of {path}.")
    return _compare([measured(bench.database(), told, seed=0)], "own history")


def _last_tenth(history: History) -> datetime:
    first, last = history.views[0].at, history.views[-1].at
    return last - (last - first) / 10


def _compare(found: Sequence[Found], what: str = "recommendations") -> list[Comparison]:
    side = partial(_side, found)
    compare = partial(Comparison, what, UNIT)
    own = what != "recommendations"
    pairs = [
        compare(side(BLEND), side(TREND), at_least=None if own else 1.5),
        compare(side(TREND), side(CHANCE)),
        *(compare(side(name), side(BLEND), at_least=0.9) for name in HOSTILE),
    ]
    if TASTE in found[0]:
        pairs.append(compare(side(BLEND), side(TASTE)))
    if MODEL in found[0]:
        pairs.append(compare(side(MODEL), side(f"{BLEND}, the same users")))
    return pairs


def _side(found: Sequence[Found], name: str) -> Side:
    scores = [each[name] for each in found]
    notes = {
        f"recall@{DEPTH}": median(each.recall for each in scores),
        "coverage": median(each.coverage for each in scores),
    }
    return Side(name, [each.ndcg for each in scores], notes)


def _videos(answers: Sequence[Sequence[RankedVideo]]) -> Sequence[Sequence[UUID]]:
    return [[each.video_id for each in answer] for answer in answers]

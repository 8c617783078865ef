"""Recommendations against chance, what is popular or trends, other models, and a language model.

What is asked for is the end of a history of made-up communities, whose tastes are known; for the
history of a site, see `history_report`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from statistics import median

import uvloop

from benchmarks.bench import Bench, Scale, say
from benchmarks.community import Community, Shape, make_community
from benchmarks.contenders import BLEND, TASTE, TREND, ProductContender, Taste
from benchmarks.evaluation import Question, Ranking, Scores, ask_at, rankings, score
from benchmarks.history import History
from benchmarks.hostile import HOSTILE
from benchmarks.measures import DEPTH
from benchmarks.peers import CHANCE, peers
from benchmarks.product import Answer, Product
from benchmarks.results import Comparison, Side
from infra.llm.client import make_language_model
from infra.llm.errors import LanguageModelError
from infra.settings import Settings, load_settings
from projections.recommendations.model import RankedVideo
from projections.recommendations.ranker import Ranker, fuse

SEEDS = (301, 302, 303)
"""Not those by which the numbers of the blend were chosen."""
SMALL = Shape(users=240, videos=300, topics=12, days=28, sittings_per_week=4.0)
HELD = timedelta(days=4)
ASKED = 40
"""So many users are asked about where each answer is paid for."""
UNIT = f"NDCG@{DEPTH}"
MODEL, ALONE = "blend and language model", f"{BLEND}, the same users"

Found = Mapping[str, Scores]


def run(bench: Bench) -> list[Comparison]:
    """A value per community; recall@10 and coverage beside it."""
    shape, seeds = (SMALL, SEEDS[:1]) if bench.scale is Scale.QUICK else (Shape(), SEEDS)
    until = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    found = []
    for seed in seeds:
        community = make_community(seed, shape, until=until)
        questions = ask_at(community.history, until - HELD)
        say(f"seed {seed}: {len(questions)} users are asked about")
        found.append(measured(bench.database(), community, questions, seed))
    return _compare(found)


def measured(url: str, community: Community, questions: Sequence[Question], seed: int) -> Found:
    """Return the scores of all contenders by name; `url` leads to an empty database."""
    settings = load_settings(os.environ)
    others, missing = peers(seed)
    for line in missing:
        say(line)
    with Product(url, settings) as product:
        ours = ProductContender(product, seed, hostile=True)
        contenders = [ours, *others, Taste(community)]
        found = dict(rankings(community.history, questions, contenders))
    names = [TREND, *(name for each in others for name in each.names)]
    scores = _by_name(community.history, questions, found, names)
    if settings.llm.configured:
        asked = questions[:ASKED]
        answers = [ours.answers[question] for question in asked]
        told = {
            MODEL: uvloop.run(_asked(settings, answers)),
            ALONE: list(found[BLEND][:ASKED]),
        }
        scores |= _by_name(community.history, asked, told, ())
    return scores


def _by_name(
    history: History,
    questions: Sequence[Question],
    found: Mapping[str, Sequence[Ranking]],
    names: Sequence[str],
) -> dict[str, Scores]:
    return {each.name: each for each in score(history, questions, found, names)}


async def _asked(settings: Settings, answers: Sequence[Answer]) -> list[Ranking]:
    """Return the language model's order fused with the blend."""
    llm = make_language_model(settings.llm)
    if llm is None:
        raise RuntimeError("there is a provider")
    ranker, failed = Ranker(llm, settings.recommendations.model), 0
    fused: list[Sequence[RankedVideo]] = []
    try:
        for answer in answers:
            try:
                fused.append(fuse(answer.blended, await ranker.rank(answer.material, DEPTH)))
            except LanguageModelError:
                # As users have it then.
                fused.append(answer.blended)
                failed += 1
    finally:
        await ranker.aclose()
    say(f"the language model was asked {len(answers)} times, {failed} times in vain")
    return [[each.video_id for each in order] for order in fused]


def _compare(found: Sequence[Found]) -> list[Comparison]:
    side = partial(_side, found)
    compare = partial(Comparison, "recommendations", UNIT)
    apart = {TREND, BLEND, CHANCE, TASTE, MODEL, ALONE, *HOSTILE}
    pairs = [
        compare(side(BLEND), side(TREND), at_least=1.5),
        compare(side(TREND), side(CHANCE)),
        *(compare(side(name), side(BLEND), at_least=0.9) for name in HOSTILE),
        *(compare(side(BLEND), side(name)) for name in found[0] if name not in apart),
        compare(side(BLEND), side(TASTE)),
    ]
    if MODEL in found[0]:
        pairs.append(compare(side(MODEL), side(ALONE)))
    return pairs


def _side(found: Sequence[Found], name: str) -> Side:
    scores = [each[name] for each in found]
    notes = {
        f"recall@{DEPTH}": median(each.recall.value for each in scores),
        "coverage": median(each.coverage for each in scores),
    }
    return Side(name, [each.ndcg.value for each in scores], notes)

"""How good the recommendations are for a site, by its own history."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from random import Random
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from benchmarks.bench import Scale, open_bench, say
from benchmarks.contenders import BLEND, ProductContender
from benchmarks.evaluation import (
    Estimate,
    Question,
    Ranking,
    Scores,
    last_engagement,
    last_share,
    next_days,
    rankings,
    score,
)
from benchmarks.history import History
from benchmarks.history_files import HistoryUnusable
from benchmarks.measures import DEPTH
from benchmarks.peers import peers
from benchmarks.product import Product
from benchmarks.results import NOTHING
from infra.settings import Settings

SEED = 1
FEWEST_VIDEOS = 2 * DEPTH
FEWEST_USERS = 10


@dataclass(frozen=True, slots=True)
class Request:
    """How a history is judged: beside the standard protocols by the next `days`, at `cuts` times.

    At most `users` are asked in each protocol, drawn evenly.
    """

    days: int | None = None
    cuts: int = 5
    users: int = 1_000


@dataclass(frozen=True, slots=True)
class Judgement:
    """The scores by one protocol; `scores` is empty where nobody could be asked."""

    protocol: str
    users: int
    questions: int
    scores: Sequence[Scores]


@dataclass(frozen=True, slots=True)
class Report:
    """What a history holds, how the contenders did, and who could not take part."""

    events: int
    users: int
    videos: int
    first: datetime
    last: datetime
    judgements: Sequence[Judgement]
    missing: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self) | {"first": self.first.isoformat(), "last": self.last.isoformat()}

    def as_table(self) -> Group:
        """Return it for a terminal."""
        about = (
            f"{self.events:,} events of {self.users:,} users with {self.videos:,} videos,"
            f" {self.first:%Y-%m-%d} to {self.last:%Y-%m-%d}"
        )
        missing = (Text(line) for line in self.missing)
        return Group(about, *(_table(each) for each in self.judgements), *missing)


def judge(history: History, request: Request, settings: Settings) -> Report:
    """Judge by all protocols at once. Raise HistoryUnusable, before the work, for too little."""
    asked = _questions(history, request)
    others, missing = peers(SEED)
    everything = list(dict.fromkeys(question for each in asked.values() for question in each))
    say(f"{len(everything):,} questions about {len(history.events):,} events")
    with (
        open_bench(Scale.USUAL) as bench,
        Product(bench.database(), settings) as product,
    ):
        contenders = [ProductContender(product, SEED), *others]
        found = rankings(history, everything, contenders, on_asked=_progress(len(everything)))
    places = {question: place for place, question in enumerate(everything)}
    judgements = []
    for protocol, questions in asked.items():
        answers = {
            name: [each[places[question]] for question in questions] for name, each in found.items()
        }
        judgements.append(_judgement(history, protocol, questions, answers))
    return Report(
        len(history.events),
        len({event.user for event in history.events}),
        len(history.films),
        history.events[0].at,
        history.events[-1].at,
        judgements,
        missing,
    )


def _progress(whole: int) -> Callable[[int], None]:
    """Return what tells of each tenth of so many questions."""

    def tell(done: int) -> None:
        if 10 * done // whole > 10 * (done - 1) // whole:
            say(f"{done:,} of {whole:,} questions asked")

    return tell


def _questions(history: History, request: Request) -> dict[str, list[Question]]:
    """Return the questions of each protocol."""
    if len(history.films) < FEWEST_VIDEOS:
        raise HistoryUnusable(
            f"the history has {len(history.films)} videos: of fewer than {FEWEST_VIDEOS}, ten"
            " recommendations say nothing; give a longer one"
        )
    fifth = last_share(history)
    asked = {
        "last fifth by time, all users": fifth,
        "last fifth by time, users with a past": [each for each in fifth if not each.new],
    }
    if request.days is not None:
        ahead = next_days(history, request.days, request.cuts)
        if not ahead:
            raise HistoryUnusable(
                f"--days {request.days}: nobody comes back for another video within so many days,"
                f" of the {(history.events[-1].at - history.events[0].at).days} of the history"
            )
        cuts = len({each.cut for each in ahead})
        asked[f"next {request.days} days, mean of {cuts} cuts"] = ahead
    asked["each user's last"] = last_engagement(history)
    most = max(len({each.user for each in questions}) for questions in asked.values())
    if most < FEWEST_USERS:
        raise HistoryUnusable(
            f"only {most} users come back for another video, and at least {FEWEST_USERS} are"
            " needed to judge by: give a longer history"
        )
    return {name: _some(questions, request.users) for name, questions in asked.items()}


def _some(questions: list[Question], most: int) -> list[Question]:
    users = sorted({question.user for question in questions})
    if len(users) <= most:
        return questions
    chosen = set(Random(SEED).sample(users, most))
    return [question for question in questions if question.user in chosen]


def _judgement(
    history: History,
    protocol: str,
    questions: Sequence[Question],
    found: Mapping[str, Sequence[Ranking]],
) -> Judgement:
    names = [name for name in found if name != BLEND]
    scores = score(history, questions, found, names) if questions else []
    return Judgement(protocol, len({each.user for each in questions}), len(questions), scores)


def _table(told: Judgement) -> Table:
    title = f"{told.protocol}: {told.users:,} users, {told.questions:,} questions"
    table = Table(title=title, title_justify="left")
    table.add_column("contender")
    for name in (f"NDCG@{DEPTH}", f"recall@{DEPTH}", "hit rate", "coverage", "NDCG / best peer's"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in sorted(told.scores, key=lambda each: -each.ndcg.value):
        table.add_row(
            each.name,
            _bounded(each.ndcg, 3),
            _bounded(each.recall, 3),
            _bounded(each.hit_rate, 3),
            f"{each.coverage:.3f}",
            NOTHING if each.ratio is None else _bounded(each.ratio, 2),
            style="bold" if each.name == BLEND else None,
        )
    return table


def _bounded(each: Estimate, digits: int) -> str:
    value, low, high = (f"{number:.{digits}f}" for number in (each.value, each.low, each.high))
    return f"{value} ({low} … {high})"

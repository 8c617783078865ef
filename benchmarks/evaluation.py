"""How well recommendations guess what is engaged with next: questions about a history, and scores.

A protocol cuts a history and asks. The contenders get what had happened before each question, in
order of time, and their first ten videos are compared with what the user then engaged with.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Protocol
from uuid import UUID

from benchmarks.history import ENGAGEMENT, Event, Film, History
from benchmarks.measures import coverage, ndcg, recall

FITS = 20
"""So often at most a model is fitted anew while questions are asked."""
RESAMPLES = 1_000
SEED = 1979

Ranking = Sequence[UUID]


@dataclass(frozen=True, slots=True)
class Question:
    """What does this user engage with from a time on?

    `seen` is what the product never recommends: what the user engaged with before, and the user's
    own videos. `relevant` is the answer: what was there, and engaged with for the first time then.
    Questions of one `cut` are of one time, or of each user's own. Somebody `new` has engaged with
    nothing before.
    """

    user: str
    at: datetime
    seen: frozenset[UUID]
    relevant: frozenset[UUID]
    cut: int = 0
    new: bool = False


def ask_at(
    history: History, at: datetime, until: datetime | None = None, *, cut: int = 0
) -> list[Question]:
    """Return a question for each user who engages with something new from `at` to `until`.

    Only what was there at that time counts: nobody can guess other videos.
    """
    there = {film.video_id for film in history.films if film.since < at}
    before, later = defaultdict[str, set[UUID]](set), defaultdict[str, set[UUID]](set)
    for event in history.events:
        if event.kind in ENGAGEMENT and (until is None or event.at < until):
            (before if event.at < at else later)[event.user].add(event.video_id)
    own = _own(history)
    return [
        Question(user, at, seen, relevant, cut, not before[user])
        for user, videos in sorted(later.items())
        for seen in (frozenset(before[user] | own[user]),)
        if (relevant := frozenset((videos & there) - seen))
    ]


def last_share(history: History, share: float = 0.2) -> list[Question]:
    """Ask at one time, after which so large a share of the events lies."""
    at = history.events[int(len(history.events) * (1 - share))].at
    return ask_at(history, at)


def next_days(history: History, days: int, cuts: int) -> list[Question]:
    """Ask for the next days at several times: the last one so many days before the end.

    Who is new is not asked, and nobody at a time before the history.
    """
    end = history.events[-1].at + timedelta(microseconds=1)
    length = timedelta(days=days)
    before = (end - history.events[0].at) // length
    return [
        question
        for cut in range(min(cuts, before))
        for at in (end - (cut + 1) * length,)
        for question in ask_at(history, at, at + length, cut=cut)
        if not question.new
    ]


def last_engagement(history: History) -> list[Question]:
    """Ask for each user's last new video, as of its time; for all of them where several are last.

    Whoever has engaged with nothing before that is not asked.
    """
    first: dict[str, dict[UUID, datetime]] = defaultdict(dict)
    for event in history.events:
        if event.kind in ENGAGEMENT:
            first[event.user].setdefault(event.video_id, event.at)
    since = {film.video_id: film.since for film in history.films}
    own = _own(history)
    questions = []
    for user, times in sorted(first.items()):
        at = max((time for video, time in times.items() if video not in own[user]), default=None)
        if at is None:
            continue
        before = {video for video, time in times.items() if time < at}
        seen = frozenset(before | own[user])
        last = {video for video, time in times.items() if time == at and since[video] < at}
        if before and last - seen:
            questions.append(Question(user, at, seen, frozenset(last - seen)))
    return questions


def _own(history: History) -> defaultdict[str, set[UUID]]:
    own = defaultdict[str, set[UUID]](set)
    for film in history.films:
        own[film.owner].add(film.video_id)
    return own


class Contender(Protocol):
    """Something that recommends; it is told what happens, in order of time."""

    @property
    def names(self) -> Sequence[str]:
        """Of the orders that it gives, as they are shown."""

    def publish(self, film: Film) -> None:
        """Take in a video."""

    def take(self, event: Event) -> None:
        """Take in what happened."""

    def fit(self, at: datetime) -> None:
        """Learn of all that happened; called now and then."""

    def rank(self, question: Question) -> Mapping[str, Ranking]:
        """Return ten videos by each name, or fewer; what the user has seen is not among them."""


class CatalogContender:
    """Knows which videos there are, and learns nothing from what happens."""

    def __init__(self) -> None:
        self.videos: list[UUID] = []

    def publish(self, film: Film) -> None:
        self.videos.append(film.video_id)

    def take(self, event: Event) -> None:
        """What happens makes no difference."""

    def fit(self, at: datetime) -> None:
        """There is nothing to learn."""


def rankings(
    history: History,
    questions: Sequence[Question],
    contenders: Sequence[Contender],
    *,
    on_asked: Callable[[int], None] = lambda count: None,
) -> Mapping[str, list[Ranking]]:
    """Ask all contenders, and return by their names the answers in the order of the questions.

    `on_asked` gets the number of questions asked so far.
    """
    films = sorted(history.films, key=lambda film: film.since)
    published = taken = 0
    found: dict[str, list[Ranking]] = {
        name: [()] * len(questions) for each in contenders for name in each.names
    }
    asked = sorted(range(len(questions)), key=lambda number: questions[number].at)
    fits = fitting_times([questions[number].at for number in asked])
    for done, number in enumerate(asked):
        on_asked(done)
        question = questions[number]
        while published < len(films) and films[published].since < question.at:
            for each in contenders:
                each.publish(films[published])
            published += 1
        while taken < len(history.events) and history.events[taken].at < question.at:
            for each in contenders:
                each.take(history.events[taken])
            taken += 1
        if question.at in fits:
            fits.remove(question.at)
            for each in contenders:
                each.fit(question.at)
        for each in contenders:
            for name, ranking in each.rank(question).items():
                found[name][number] = ranking
    return found


def fitting_times(times: Sequence[datetime], most: int = FITS) -> set[datetime]:
    """Return when models are fitted: at each time, or at the first of each of `most` equal parts.

    `times` are those of the questions, in order.
    """
    distinct = sorted(set(times))
    if len(distinct) <= most:
        return set(distinct)
    return {times[part * len(times) // most] for part in range(most)}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, and the bounds between which 95 % of its resamples lie."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Scores:
    """How good a contender is; `ratio` is its NDCG over that of the best of the others.

    NDCG, recall and the share of questions with a hit are means over the users of a cut, and the
    mean of the cuts. The ratio is None where the best of the others has found nothing.
    """

    name: str
    ndcg: Estimate
    recall: Estimate
    hit_rate: Estimate
    coverage: float
    ratio: Estimate | None


def score(
    history: History,
    questions: Sequence[Question],
    found: Mapping[str, Sequence[Ranking]],
    peers: Collection[str],
    *,
    resamples: int = RESAMPLES,
) -> list[Scores]:
    """Return the scores of all rankings; `peers` are the names that the others are compared with.

    Bounds come from the bootstrap over users (Efron, 1979; percentiles), whose questions stay
    together: the same users are drawn for all, so that the ratios are paired.
    """
    sample = Sample(questions, resamples)
    pairs = {
        name: list(zip(answers, (each.relevant for each in questions), strict=True))
        for name, answers in found.items()
    }
    gains = {name: sample.of([ndcg(*pair) for pair in each]) for name, each in pairs.items()}
    recalls = {name: sample.of([recall(*pair) for pair in each]) for name, each in pairs.items()}
    hits = {
        name: sample.of([float(recall(*pair) > 0) for pair in each]) for name, each in pairs.items()
    }
    latest = max(question.at for question in questions)
    there = [film.video_id for film in history.films if film.since < latest]

    def ratio(name: str) -> Estimate | None:
        others = [peer for peer in peers if peer != name]
        best = max(others, key=lambda peer: gains[peer][0], default=None)
        return None if best is None else _ratio(gains[name], gains[best])

    return [
        Scores(
            name,
            _estimate(gains[name]),
            _estimate(recalls[name]),
            _estimate(hits[name]),
            coverage(answers, there),
            ratio(name),
        )
        for name, answers in found.items()
    ]


class Sample:
    """Users drawn again and again, as many as there are, with all of their questions."""

    def __init__(self, questions: Sequence[Question], resamples: int) -> None:
        cuts = Counter(question.cut for question in questions)
        self._weights = [1 / (len(cuts) * cuts[question.cut]) for question in questions]
        numbers: dict[str, int] = {}
        self._users = [numbers.setdefault(each.user, len(numbers)) for each in questions]
        self._count = len(numbers)
        chance = Random(SEED)
        drawn = range(self._count)
        self._draws = [chance.choices(drawn, k=self._count) for _ in range(resamples)]
        self._totals = self._sums([1.0] * len(questions))

    def of(self, values: Sequence[float]) -> list[float]:
        """Return the mean of a value per question, and then its mean in each resample."""
        sums = self._sums(values)
        return [above / below for above, below in zip(sums, self._totals, strict=True)]

    def _sums(self, values: Sequence[float]) -> list[float]:
        users = [0.0] * self._count
        for user, weight, value in zip(self._users, self._weights, values, strict=True):
            users[user] += weight * value
        get = users.__getitem__
        return [sum(users), *(sum(map(get, draw)) for draw in self._draws)]


def _estimate(values: Sequence[float]) -> Estimate:
    """Return the first of the values, with bounds from the others, which are its resamples."""
    resampled = sorted(values[1:])
    beyond = int(len(resampled) * 0.025)
    return Estimate(values[0], resampled[beyond], resampled[-1 - beyond])


def _ratio(ours: Sequence[float], best: Sequence[float]) -> Estimate | None:
    if best[0] == 0:
        return None
    whole = [one / other for one, other in zip(ours, best, strict=True) if other > 0]
    return _estimate(whole)

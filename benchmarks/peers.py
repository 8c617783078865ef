"""What recommendations are compared with: chance, what is popular, and models of other people.

The models take numpy, scipy and `implicit`: the extra `bench`.
"""

from __future__ import annotations

import warnings
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from functools import partial
from heapq import nsmallest
from importlib import import_module
from random import Random
from typing import Any, Protocol
from uuid import UUID

from benchmarks.evaluation import CatalogContender, Contender, Question, Ranking
from benchmarks.history import ENGAGEMENT, Event, Film
from benchmarks.measures import DEPTH

CHANCE = "random"
KNN, ALS, EASE = "item kNN", "ALS", "EASE"
INSTALL = "pip install 'backlot[bench]'"
MOST_VIDEOS = 5_000
"""EASE inverts a matrix of so many videos at most, those with the most users."""


class Chance(CatalogContender):
    """Videos that the user has not seen, drawn evenly."""

    names = (CHANCE,)

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._chance = Random(seed)

    def rank(self, question: Question) -> Mapping[str, Ranking]:
        left = [video for video in self.videos if video not in question.seen]
        return {CHANCE: self._chance.sample(left, min(DEPTH, len(left)))}


class Popular:
    """What was engaged with most in the last days; equals are ordered by id."""

    def __init__(self, days: int) -> None:
        self.names = (f"popular of {days} days",)
        self._length = timedelta(days=days)
        self._recent: deque[Event] = deque()
        self._counts: Counter[UUID] = Counter()

    def publish(self, film: Film) -> None:
        """Nobody has engaged with it yet."""

    def take(self, event: Event) -> None:
        if event.kind in ENGAGEMENT:
            self._recent.append(event)
            self._counts[event.video_id] += 1

    def fit(self, at: datetime) -> None:
        """What is popular is counted, not learned."""

    def rank(self, question: Question) -> Mapping[str, Ranking]:
        while self._recent and self._recent[0].at < question.at - self._length:
            self._counts[self._recent.popleft().video_id] -= 1
        left = (
            (-count, video)
            for video, count in self._counts.items()
            if count and video not in question.seen
        )
        return {self.names[0]: [video for _, video in nsmallest(DEPTH, left)]}


class Model(Protocol):
    """Learns from who engaged with what, as a sparse matrix of ones (users by videos)."""

    def fit(self, matrix: Any) -> None:
        """Learn."""

    def scores(self, videos: Any) -> Any:
        """Return a score for each video, for somebody who engaged with the videos numbered so."""


class ModelPeer:
    """A model that is fitted anew now and then, and asked about what each user did until then.

    A user who has done nothing gets what is popular of 30 days.
    """

    def __init__(self, name: str, model: Model) -> None:
        self.names = (name,)
        self._model = model
        self._numpy, self._sparse = import_module("numpy"), import_module("scipy.sparse")
        self._popular = Popular(30)
        self._engaged: dict[str, dict[UUID, None]] = {}
        self._order: list[UUID] = []
        self._places: dict[UUID, int] = {}

    def publish(self, film: Film) -> None:
        """A model knows only what somebody has engaged with."""

    def take(self, event: Event) -> None:
        self._popular.take(event)
        if event.kind in ENGAGEMENT:
            self._engaged.setdefault(event.user, {})[event.video_id] = None

    def fit(self, at: datetime) -> None:
        # Stable sorts then order equals by id.
        self._order = sorted({video for each in self._engaged.values() for video in each})
        self._places = {video: place for place, video in enumerate(self._order)}
        if not self._order:
            return
        columns = [self._places[video] for each in self._engaged.values() for video in each]
        starts = [0]
        for each in self._engaged.values():
            starts.append(starts[-1] + len(each))
        ones = self._numpy.ones(len(columns), dtype="float32")
        shape = len(self._engaged), len(self._order)
        self._model.fit(self._sparse.csr_matrix((ones, columns, starts), shape=shape))

    def rank(self, question: Question) -> Mapping[str, Ranking]:
        known = self._numbers(self._engaged.get(question.user, ()))
        if not len(known):
            # As any site would have it.
            return {self.names[0]: self._popular.rank(question)[self._popular.names[0]]}
        scores = self._model.scores(known)
        scores[self._numbers(question.seen)] = -self._numpy.inf
        best = self._numpy.argsort(-scores, kind="stable")[:DEPTH]
        ranked = [self._order[place] for place in best if scores[place] > -self._numpy.inf]
        return {self.names[0]: ranked}

    def _numbers(self, videos: Iterable[UUID]) -> Any:
        found = [self._places[video] for video in videos if video in self._places]
        return self._numpy.array(sorted(found), dtype=int)


class Ease:
    """Embarrassingly shallow autoencoders (Steck, 2019), in closed form.

    P = (X'X + λI)^-1, B = I - P / diag(P) by columns; a user's scores are x B.
    """

    def __init__(self, penalty: float = 250.0) -> None:
        self._numpy = import_module("numpy")
        self._penalty = penalty

    def fit(self, matrix: Any) -> None:
        numpy = self._numpy
        counts = numpy.asarray(matrix.sum(axis=0)).ravel()
        self._kept = numpy.sort(numpy.argsort(-counts, kind="stable")[:MOST_VIDEOS])
        self._places = numpy.full(matrix.shape[1], -1)
        self._places[self._kept] = numpy.arange(len(self._kept))
        some = matrix[:, self._kept]
        gram = (some.T @ some).toarray().astype("float64")
        gram[numpy.diag_indices_from(gram)] += self._penalty
        inverse = numpy.linalg.inv(gram)
        weights = -inverse / numpy.diag(inverse)
        numpy.fill_diagonal(weights, 0.0)
        self._weights = weights

    def scores(self, videos: Any) -> Any:
        places = self._places[videos]
        found = self._numpy.full(len(self._places), -self._numpy.inf)
        found[self._kept] = self._weights[places[places >= 0]].sum(axis=0)
        return found


class ItemNeighbours:
    """The videos nearest by cosine to those that the user engaged with, of 100 neighbours each."""

    def __init__(self, neighbours: int = 100) -> None:
        self._numpy = import_module("numpy")
        self._nearest = import_module("implicit.nearest_neighbours")
        self._neighbours = neighbours

    def fit(self, matrix: Any) -> None:
        model = self._nearest.CosineRecommender(K=self._neighbours + 1, num_threads=1)
        with warnings.catch_warnings():
            # It converts what it has made itself.
            warnings.simplefilter("ignore")
            model.fit(matrix, show_progress=False)
        self._similar = model.similarity

    def scores(self, videos: Any) -> Any:
        return self._numpy.asarray(self._similar[videos].sum(axis=0), dtype="float64").ravel()


class Factors:
    """Alternating least squares for implicit feedback (Hu, Koren and Volinsky, 2008)."""

    def __init__(self, factors: int = 64, penalty: float = 0.05, confidence: float = 2.0) -> None:
        self._numpy, self._sparse = import_module("numpy"), import_module("scipy.sparse")
        self._als = import_module("implicit.als")
        # Its own threads and those of BLAS would be in each other's way.
        limits = import_module("threadpoolctl").threadpool_limits
        self._one_thread = partial(limits, 1, "blas")
        self._given = {"factors": factors, "regularization": penalty, "alpha": confidence}

    def fit(self, matrix: Any) -> None:
        with self._one_thread():
            self._model = self._als.AlternatingLeastSquares(
                **self._given, iterations=15, random_state=1, num_threads=1, use_gpu=False
            )
            self._model.fit(matrix, show_progress=False)

    def scores(self, videos: Any) -> Any:
        count = len(self._model.item_factors)
        row = (self._numpy.ones(len(videos), dtype="float32"), videos, [0, len(videos)])
        user = self._model.recalculate_user(0, self._sparse.csr_matrix(row, shape=(1, count)))
        return (self._model.item_factors @ user.ravel()).astype("float64")


MODELS: Mapping[str, tuple[type[Ease] | type[ItemNeighbours] | type[Factors], tuple[str, ...]]] = {
    KNN: (ItemNeighbours, ("numpy", "scipy", "implicit")),
    ALS: (Factors, ("numpy", "scipy", "implicit")),
    EASE: (Ease, ("numpy", "scipy")),
}


def peers(seed: int) -> tuple[list[Contender], list[str]]:
    """Return the peers that can take part, and for each of the others why it can't."""
    found: list[Contender] = [Chance(seed), Popular(7), Popular(30)]
    missing = []
    for name, (model, libraries) in MODELS.items():
        absent = [library for library in libraries if not _importable(library)]
        if absent:
            verb = "is" if len(absent) == 1 else "are"
            missing.append(f"{name}: {' and '.join(absent)} {verb} not installed: {INSTALL}")
        else:
            found.append(ModelPeer(name, model()))
    return found, missing


def _importable(library: str) -> bool:
    try:
        import_module(library)
    except ImportError:
        return False
    return True

"""The blend: orders candidates by how near they are to the user, and by what trends.

A language model's answer is fused with this order; without a model this order is the answer.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from projections.recommendations.model import Candidate, Material, RecommendationSource, Recommended
from projections.recommendations.prompt import plain

TITLE_LENGTH = 60
"""In characters: a reason is a line beside a thumbnail."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What each signal weighs.

        score = (anybody + Σ weight · signal) · (unknown + trending)^popularity

    The sum is how well a video fits the user, the power how likely anybody is to watch it now:
    multiplied, as a likelihood is with a prior. `anybody` is the fit of what nothing ties to the
    user, `unknown` stands for the popularity of what does not trend.

    The n-th video of a category (n = 0, 1, …) has its score divided by 1 + n · repeat, as in
    maximal marginal relevance (Carbonell and Goldstein, 1998) with a similarity of 1 within a
    category and 0 between categories. Who is new has shown no taste, and gets more variety.
    """

    neighbour: float = 1.0
    similar: float = 0.5
    same_category: float = 0.4
    anybody: float = 0.1
    unknown: float = 0.2
    popularity: float = 0.5
    repeat: float = 0.01
    repeat_for_new: float = 1.0

    def parts(self, candidate: Candidate) -> dict[str, float]:
        """Return what ties a candidate to the user, and how much of each."""
        return {
            "neighbour": self.neighbour * candidate.neighbour,
            "similar": self.similar * candidate.similar,
            "same_category": self.same_category * candidate.same_category,
        }

    def score(self, candidate: Candidate) -> float:
        fit = self.anybody + sum(self.parts(candidate).values())
        return float(fit * (self.unknown + candidate.trending) ** self.popularity)


WEIGHTS = Weights()


def blend(material: Material, *, limit: int) -> list[Recommended]:
    """Return the first `limit` candidates by falling score; equal scores are ordered by id."""
    is_new = material.profile.is_empty
    repeat = WEIGHTS.repeat_for_new if is_new else WEIGHTS.repeat
    scored = sorted(
        ((WEIGHTS.score(each), each) for each in material.candidates),
        key=lambda pair: (-pair[0], pair[1].video_id),
    )
    found: list[Recommended] = []
    for score, candidate in _varied(scored, repeat):
        if len(found) >= limit:
            break
        reason = _reason(candidate, material)
        found.append(Recommended(candidate.video_id, score, reason, candidate.because))
    return found


def source_of(material: Material) -> RecommendationSource:
    """Return what the blend has to go by: TRENDING where nothing ties a candidate to the user."""
    tied = any(each.neighbour or each.similar or each.same_category for each in material.candidates)
    return (
        RecommendationSource.BLEND
        if tied and not material.profile.is_empty
        else RecommendationSource.TRENDING
    )


def _varied(
    scored: Sequence[tuple[float, Candidate]], repeat: float
) -> Iterator[tuple[float, Candidate]]:
    """Yield all with lowered scores, best first; those without a category repeat nothing."""
    queues: dict[str | UUID, deque[tuple[float, Candidate]]] = defaultdict(deque)
    for score, candidate in scored:
        queues[candidate.category or candidate.video_id].append((score, candidate))
    given = dict.fromkeys(queues, 0)

    def lowered(key: str | UUID) -> float:
        return queues[key][0][0] / (1 + given[key] * repeat)

    while queues:
        key = min(queues, key=lambda each: (-lowered(each), queues[each][0][1].video_id))
        score = lowered(key)
        yield score, queues[key].popleft()[1]
        given[key] += 1
        if not queues[key]:
            del queues[key]


def _reason(candidate: Candidate, material: Material) -> str:
    """Return the strongest tie of the candidate to the user, in a line for people."""
    parts = WEIGHTS.parts(candidate)
    most = max(parts, key=lambda name: parts[name])
    if parts[most] < WEIGHTS.anybody:
        return "Trending this week" if candidate.trending else "Something else to watch"
    if most == "neighbour":
        return _because(candidate.because, material)
    if most == "similar":
        return "Similar to what you watched"
    category = _line(candidate.category or "")
    return f"Popular in {category} right now" if candidate.trending else f"More in {category}"


def _because(video_id: UUID | None, material: Material) -> str:
    liked = any(each.video_id == video_id for each in material.profile.liked)
    verb = "liked" if liked else "watched"
    described = material.described.get(video_id) if video_id else None
    if described is None or not (title := _line(described.title)):
        return f"Because of what you {verb}"
    return f"Because you {verb} “{title}”"


def _line(title: str) -> str:
    """Return a title on one line, without characters that can't be seen or turn the text around."""
    whole = plain(title)
    return whole if len(whole) <= TITLE_LENGTH else f"{whole[: TITLE_LENGTH - 1].rstrip()}…"

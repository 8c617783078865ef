"""What a user's dismissals say of other videos: a little, and never too much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from uuid import UUID

from projections.recommendations.model import DescribedVideo

MOST_DISMISSED = 1_000
"""So many, the latest, are looked up to be left out of the candidates; none is shown, however old
its dismissal is."""
TELLING = 20
"""So many, the latest, tell what the user is less interested in."""
# Each of a category takes so much of its videos' scores, up to a half: a category is much wider
# than a video, and what the user watches goes on to count.
STEP = 0.1
LEAST = 0.5


def interest(
    dismissed: Sequence[UUID], described: Mapping[UUID, DescribedVideo]
) -> dict[str, float]:
    """Return by what the scores of some categories are multiplied: from LEAST to 1."""
    found = (described[video].category for video in dismissed if video in described)
    counts = Counter(category for category in found if category is not None)
    return {category: max(LEAST, 1 - STEP * count) for category, count in counts.items()}

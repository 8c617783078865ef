"""How sure a share is, and how likely a difference comes by chance."""

from __future__ import annotations

from math import comb, erfc, sqrt
from typing import NamedTuple

# Of a two-sided interval that holds the true share 95 times in 100.
Z_95 = 1.959963984540054
# Beyond this many the exact sum would take longer than the normal distribution is wrong.
MOST_EXACT = 1_000


class Interval(NamedTuple):
    """The bounds of a share, between 0 and 1."""

    low: float
    high: float


def wilson(successes: int, trials: int) -> Interval | None:
    """Return the 95 % score interval of a share; None without trials.

    By E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", Journal
    of the American Statistical Association 22 (1927): it stays within 0 and 1, and holds what it
    promises also for few trials and for shares near 0, where those of clicks lie.
    """
    if not trials:
        return None
    share, z2 = successes / trials, Z_95 * Z_95
    middle = share + z2 / (2 * trials)
    reach = Z_95 * sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    scale = 1 + z2 / trials
    return Interval(max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale))


def sign_test(wins: int, losses: int) -> float | None:
    """Return the two-sided p value of so many wins if both sides were equal; None without any.

    Exact (binomial) up to 1,000 decisions; beyond, by the normal distribution with a correction
    for continuity. Ties decide nothing and are left out (Dixon and Mood, "The Statistical Sign
    Test", Journal of the American Statistical Association 41, 1946).
    """
    decided = wins + losses
    if not decided:
        return None
    if decided > MOST_EXACT:
        distance = max(abs(wins - losses) - 1, 0) / sqrt(decided)
        return erfc(distance / sqrt(2))
    tail = sum(comb(decided, fewer) for fewer in range(min(wins, losses) + 1))
    return min(1.0, float(2 * tail / 2**decided))

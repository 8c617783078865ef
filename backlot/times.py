"""Times and durations as people type them.

One rule for zones: a time that names none is in UTC.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from infra.errors import UsageError

UNITS = {
    timedelta(seconds=1): ("s", "sec", "secs", "second", "seconds"),
    timedelta(minutes=1): ("m", "min", "mins", "minute", "minutes"),
    timedelta(hours=1): ("h", "hr", "hrs", "hour", "hours"),
    timedelta(days=1): ("d", "day", "days"),
    timedelta(weeks=1): ("w", "week", "weeks"),
}
SIZES = {word: size for size, words in UNITS.items() for word in words}
AMOUNT = re.compile(r"([0-9]{1,9})\s*([a-z]+)\s*")
# Midnights, in days from that of today.
DAYS = {"yesterday": -1, "today": 0, "tomorrow": 1}
ZONE = re.compile(r"\s+(?=[+-][0-9]|Z$)|\s*(?:UTC|GMT)$")
EXAMPLES = "yesterday, 1h, 30m, 2d, 2026-11-22 or 2026-11-22T09:30:15+01:00"


def moment(option: str, text: str | None, now: datetime) -> datetime | None:
    """The time in UTC that an option names, None where it is not given; raises UsageError.

    A duration is so long before `now`; a day is its midnight; without a zone it is in UTC.
    """
    if text is None:
        return None
    try:
        return _moment(text.strip(), now.astimezone(UTC))
    except (ValueError, OverflowError):
        raise UsageError(f"{option}: {text!r} is not a time such as {EXAMPLES}") from None


def duration(text: str) -> timedelta:
    """How long 90s, 30m, 1h, 1h30m, 2d or 1w is. Raises ValueError and OverflowError."""
    rest, total = text.strip().lower(), timedelta()
    if not rest:
        raise ValueError("no duration")
    while rest:
        match = AMOUNT.match(rest)
        if match is None or match[2] not in SIZES:
            raise ValueError(f"{text!r} is no duration")
        total += int(match[1]) * SIZES[match[2]]
        rest = rest[match.end() :]
    return total


def _moment(text: str, now: datetime) -> datetime:
    word = text.lower()
    if word == "now":
        return now
    if word in DAYS:
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        return midnight + timedelta(days=DAYS[word])
    if word.startswith("@"):
        return datetime.fromtimestamp(float(word[1:]), UTC)
    if AMOUNT.match(word.removeprefix("-")):
        return now - duration(word.removeprefix("-").removesuffix("ago"))
    return _written_out(text.upper())


def _written_out(text: str) -> datetime:
    """A date, or a date and a time, in ISO 8601 or as this program prints them."""
    joined = ZONE.sub(lambda found: "" if found[0].isspace() else "Z", text)
    time = datetime.fromisoformat(joined)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)

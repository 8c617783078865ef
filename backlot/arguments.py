"""What stands on a command line: groups of commands, names, times."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperGroup

from infra.errors import ExitCode, UsageError


class CommandGroup(TyperGroup):
    """Without a command it explains itself."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # A shell that completes what is typed so far may still get a command.
        return super().parse_args(ctx, args if args or ctx.resilient_parsing else ["--help"])

    def invoke(self, ctx: Any) -> Any:
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            # Else the interpreter tries once more at its end, and complains.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitCode.CUT_OFF) from None


class ListingGroup(CommandGroup):
    """Without a command it is its `list`, with the options of that."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = args and (not args[0].startswith("-") or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if named or ctx.resilient_parsing else ["list", *args])


def group(about: str, kind: type[CommandGroup] = CommandGroup) -> typer.Typer:
    """Return a group of commands, described by `about`."""

    def callback() -> None:
        """Do nothing; with a callback, one command alone is a group too."""

    return typer.Typer(cls=kind, help=about, callback=callback, rich_markup_mode=None)


def require_one_way(told: str, *ways: bool) -> None:
    """Raise UsageError with this text unless exactly one of the ways to choose was used."""
    if ways.count(True) != 1:
        raise UsageError(told)


SHOWN = 5
ENOUGH = 12


class UnknownName(UsageError):
    """A name that nothing has; the text lists near ones."""


def require(kind: str, name: str, names: Collection[str]) -> str:
    """Return the name when it is one of `names`, which are of this kind; else raise UnknownName."""
    if name in names:
        return name
    found = near(name, names)
    known = found or sorted(names)[:ENOUGH]
    rest = "; did you mean {}?" if found else "; there are {}" if known else "; there are none"
    raise UnknownName(f"there is no {kind} {name!r}{rest.format(', '.join(known))}")


def near(name: str, names: Iterable[str]) -> list[str]:
    """Return the `names` that are spelt like `name` or contain it, the nearest first."""
    spelt = {known.lower(): known for known in sorted(names)}
    wanted = name.lower()
    close = get_close_matches(wanted, spelt, n=SHOWN)
    within = [known for known in spelt if len(wanted) > 2 and (wanted in known or known in wanted)]
    return [spelt[known] for known in dict.fromkeys([*close, *within])][:SHOWN]


def completion(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return what offers a shell those of the names that begin as the incomplete one does."""
    return lambda incomplete: sorted(name for name in names() if name.startswith(incomplete))


def projections() -> frozenset[str]:
    """Return everything that `backlot projections` can act on."""
    from backlot.features import replayable

    return replayable()


def projection(name: str | None) -> str | None:
    """Return the name of a projection, or None where none is given; else raise UnknownName."""
    return name if name is None else require("projection", name, projections())


def aggregates() -> frozenset[str]:
    """Return the kinds of aggregates, as topics begin with them."""
    return frozenset(topic.partition(".")[0] for topic in topics())


def topics() -> frozenset[str]:
    """Return the topics of events, of all versions."""
    from backlot.features import FEATURES
    from engine.log import topics_of

    events = (e for feature in FEATURES for each in feature.aggregates for e in each.events())
    return frozenset(topic for event in events for topic in topics_of(event))


def event_types() -> frozenset[str]:
    """Return what `--type` takes: topics, topics without version, kinds of aggregates."""
    return types_of(topics())


def types_of(found: Iterable[str]) -> frozenset[str]:
    """Return the types of events under these topics, as `--type` takes them."""
    forms = (
        (topic, topic.rpartition(".v")[0] or topic, topic.partition(".")[0]) for topic in found
    )
    return frozenset(form for each in forms for form in each)


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
    """Return the time in UTC that an option names, None where it is not given; raise UsageError.

    A duration is so long before `now`; a day is its midnight; without a zone it is in UTC.
    """
    if text is None:
        return None
    try:
        return _moment(text.strip(), now.astimezone(UTC))
    except (ValueError, OverflowError):
        raise UsageError(f"{option}: {text!r} is not a time such as {EXAMPLES}") from None


def duration(text: str) -> timedelta:
    """Return how long 90s, 30m, 1h, 1h30m, 2d or 1w is. Raise ValueError or OverflowError."""
    words = text.strip().lower()
    amounts = AMOUNT.findall(words)
    if not amounts or AMOUNT.sub("", words) or any(unit not in SIZES for _, unit in amounts):
        raise ValueError(f"{text!r} is no duration")
    return sum((int(count) * SIZES[unit] for count, unit in amounts), timedelta())


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
    """Read a date, or a date and a time, in ISO 8601 or as this program prints them."""
    joined = ZONE.sub(lambda found: "" if found[0].isspace() else "Z", text)
    time = datetime.fromisoformat(joined)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)

"""Names that the program knows: those on a command line are checked, completed, and put right."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches

from infra.errors import UsageError

SHOWN = 5
ENOUGH = 12


class UnknownName(UsageError):
    """A name that nothing has; the text lists near ones."""


def require(kind: str, name: str, names: Collection[str]) -> str:
    """The name, where it is one of `names` of a `kind`; raises UnknownName."""
    if name in names:
        return name
    found = near(name, names)
    known = found or sorted(names)[:ENOUGH]
    rest = "; did you mean {}?" if found else "; there are {}" if known else "; there are none"
    raise UnknownName(f"there is no {kind} {name!r}{rest.format(', '.join(known))}")


def near(name: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that are spelt like it or have it in them, the nearest first."""
    spelt = {known.lower(): known for known in sorted(names)}
    wanted = name.lower()
    close = get_close_matches(wanted, spelt, n=SHOWN)
    within = [known for known in spelt if len(wanted) > 2 and (wanted in known or known in wanted)]
    return [spelt[known] for known in dict.fromkeys([*close, *within])][:SHOWN]


def completion(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """What a shell offers for the beginning of such a name."""

    def offered(incomplete: str) -> list[str]:
        return sorted(name for name in names() if name.startswith(incomplete))

    return offered


def projections() -> frozenset[str]:
    """Everything that `backlot projections` can be told to act on."""
    from backlot.wiring import ReadModels
    from projections.analytics.rebuilding import NAME as ANALYTICS
    from projections.replaying.counter_rebuild import NAME as COUNTERS

    return frozenset({*ReadModels.make().by_name(), ANALYTICS, COUNTERS})


def projection(name: str | None) -> str | None:
    """A parameter's callback: the name of a projection, or none given; raises UnknownName."""
    return name if name is None else require("projection", name, projections())


def aggregates() -> frozenset[str]:
    """Kinds of aggregates, as topics begin with them."""
    return frozenset(topic.partition(".")[0] for topic in topics())


def topics() -> frozenset[str]:
    """Topics of events, of whatever version."""
    from infra.codec import MAPPER

    return MAPPER.topics


def event_types() -> frozenset[str]:
    """What `--type` takes: a topic, a topic without its version, or a kind of aggregate."""
    return types_of(topics())


def types_of(found: Iterable[str]) -> frozenset[str]:
    """The types of events under these topics."""
    forms = (
        (topic, topic.rpartition(".v")[0] or topic, topic.partition(".")[0]) for topic in found
    )
    return frozenset(form for each in forms for form in each)


def published() -> frozenset[str]:
    """Topics of messages that are published and consumed."""
    from infra.integration import TOPICS

    return frozenset(TOPICS)


def queues() -> frozenset[str]:
    """Queues of tasks."""
    from infra.tasks.queues import QUEUES

    return frozenset(QUEUES)

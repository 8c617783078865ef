"""What `backlot topics list` says to people."""

from __future__ import annotations

from collections.abc import Sequence

from backlot.layout import table
from workers import topics
from workers.topics import ConsumerPlace, RelayProgress


def as_lines(relay: Sequence[RelayProgress], consumers: Sequence[ConsumerPlace]) -> list[str]:
    """Three short tables: topics, the relay, consumers."""
    rows = [(each["topic"], each["source"], each["deadLetters"]) for each in topics.topics()]
    lines = [*table(("topic", "made from", "dead letters"), rows), ""]
    lines += table(("published", "position", "head", "lag"), map(_published, relay))
    if consumers:
        headings = ("consumer", "source", "partition", "position", "dead")
        places = [(e.consumer, e.source, e.partition, e.position, e.dead) for e in consumers]
        lines += ["", *table(headings, places)]
    return lines


def _published(each: RelayProgress) -> tuple[object, ...]:
    return each.source, each.position if each.updated_at else "never", each.head, each.lag

"""What `backlot topics list` says to people."""

from __future__ import annotations

from collections.abc import Sequence

from workers import topics
from workers.topics import ConsumerPlace, Relayed


def as_lines(relay: Sequence[Relayed], consumers: Sequence[ConsumerPlace]) -> list[str]:
    """Three short tables: topics, the relay, consumers."""
    lines = [f"{'topic':<20}{'made from':<12}dead letters"]
    lines += [
        f"{each['topic']:<20}{each['source']:<12}{each['deadLetters']}" for each in topics.topics()
    ]
    lines += ["", f"{'published':<20}{'position':>10}{'head':>10}{'lag':>10}"]
    lines += [_published(each) for each in relay]
    if consumers:
        lines += ["", f"{'consumer':<20}{'source':<20}{'partition':>10}{'position':>10}{'dead':>8}"]
    lines += [
        f"{e.consumer:<20}{e.source:<20}{e.partition:>10}{e.position:>10}{e.dead:>8}"
        for e in consumers
    ]
    return lines


def _published(each: Relayed) -> str:
    position = "never" if not each.updated_at else str(each.position)
    return f"{each.source:<20}{position:>10}{each.head:>10}{each.lag:>10}"

"""Long texts are translated in pieces that a model answers in time; joined, they are the text."""

from __future__ import annotations

import re

# Where a text may be cut, the best first; a cut lies behind the match.
CUTS = (
    re.compile(r"\n\s*\n"),
    re.compile(r"\n"),
    re.compile(r"[.!?…]+[)\"'»”]*\s+|[。！？｡।؟]+"),  # noqa: RUF001 - of many scripts
    re.compile(r"[،、，；：]+|\s+"),  # noqa: RUF001 - of many scripts
)
# A cut further in front would make a tiny piece.
LEAST_SHARE = 3


def pieces(text: str, limit: int) -> list[str]:
    """The text in pieces of at most `limit` characters, cut at paragraphs, lines or sentences.

    They are at least a third of the limit, but for the last one. A run of characters without any
    place to cut at is cut at the limit.
    """
    found = []
    start = 0
    while len(text) - start > limit:
        end = _cut(text, start, start + limit)
        found.append(text[start:end])
        start = end
    found.append(text[start:])
    return found


def _cut(text: str, start: int, end: int) -> int:
    least = start + (end - start) // LEAST_SHARE
    for where in CUTS:
        places = [found.end() for found in where.finditer(text, least, end)]
        if places:
            return places[-1]
    return end

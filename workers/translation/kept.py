"""What a translation has to keep of a comment, and how to see whether it did.

Links, @mentions, #hashtags, emoji and times are compared as multisets, line breaks by number.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from infra.language.emoji import emoji_of
from infra.language.entities import hashtags, links, mentions, occurrences, without_links

TIME = re.compile(r"(?<![0-9:.])[0-9]{1,2}:[0-5][0-9](?::[0-5][0-9])?(?![0-9:])")
LINE_BREAK = re.compile(r"\r\n|\r|\n")
WIDE = str.maketrans("\uff20\uff03", "@#")


class Lost(NamedTuple):
    """What a translation changed that it had to keep."""

    kind: str
    what: str


def missing(source: str, translation: str) -> list[str]:
    """What the translation lost or made up, to be told to a translator; empty when all is there."""
    return [lost.what for lost in lost_in(source, translation)]


def lost_in(source: str, translation: str) -> list[Lost]:
    """The same with its kinds, in the order of the source, kind by kind."""
    source, translation = source.translate(WIDE), translation.translate(WIDE)
    had, has = _kept_in(source), _kept_in(translation)
    return [
        *(lost for kind in had for lost in _fewer(kind, had[kind], has[kind], translation)),
        # A link or a name that nobody has written is an attack, or a delusion.
        *(
            Lost(kind, f"nothing new, but there was {item}")
            for kind, item in _new(had, has, source)
        ),
        *_line_breaks(source, translation),
    ]


def _kept_in(text: str) -> dict[str, Counter[str]]:
    # What looks like a name or a time within a link is the link's.
    rest = without_links(text)
    return {
        "link": Counter(links(text)),
        "mention": Counter(mentions(rest)),
        "hashtag": Counter(hashtags(rest)),
        "emoji": Counter(emoji_of(rest)),
        "time": Counter(TIME.findall(rest)),
    }


def _fewer(kind: str, had: Counter[str], has: Counter[str], translation: str) -> Iterable[Lost]:
    for item, times in had.items():
        if kind == "emoji" and has[item] != times:
            yield Lost(kind, f"{item} exactly {times} times" if times > 1 else item)
        # Where the translation goes on without a space, the item seems to be longer there.
        elif has[item] < times and occurrences(item, translation) < times:
            yield Lost(kind, f"{item} {times} times" if times > 1 else item)


def _new(
    had: dict[str, Counter[str]], has: dict[str, Counter[str]], source: str
) -> Iterator[tuple[str, str]]:
    for link in has["link"]:
        if not occurrences(link, source):
            yield "link", link
    for name in has["mention"]:
        if not occurrences(name, source) and not any(
            occurrences(old, name) for old in had["mention"]
        ):
            yield "mention", name


def _line_breaks(source: str, translation: str) -> Iterable[Lost]:
    had, has = (len(LINE_BREAK.findall(text)) for text in (source, translation))
    if had != has:
        yield Lost("line break", f"exactly {had} line breaks, not {has}")

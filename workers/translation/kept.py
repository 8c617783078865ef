"""What a translation has to keep of a comment, and how to see whether it did.

Links, @mentions, #hashtags, emoji and times are compared as multisets, line breaks by number.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from workers.translation.emoji import emoji_of

# Letters of scripts that part words by spaces, and their marks. In the others (Chinese, Thai …)
# nobody can tell where a link or a Latin name ends and the sentence goes on: they end there.
SPACED = "À-ɏ\u0300-\u036fͰ-ԧա-ևא-ת\u0591-\u05bdء-\u0652\u0900-\u0963\u0966-\u0dff"
WORD = "A-Za-z0-9_" + SPACED
# Parts of words that Python does not count as such: vowel signs, and what joins letters.
MARKS = SPACED + "\u0e31-\u0e4e\u0eb1-\u0ecd\u102b-\u103e\u17b4-\u17d3\u200c\u200d"

LINK = re.compile(
    r"(?:https?://|(?<![A-Za-z0-9_@./-])(?:www\.|(?:[a-z0-9-]+\.)+[a-z]{2,}/))"
    rf"[{WORD}.~:/?#\[\]@!$&'()*+,;=%-]+",
    re.IGNORECASE,
)
MENTION = re.compile(rf"(?<![A-Za-z0-9_@./-])@(?:[{WORD}](?:[{WORD}.·-]*[{WORD}])?|[\w{MARKS}]+)")
# Digits alone are no hashtag: whoever is "#1" is the first.
HASHTAG = re.compile(rf"(?<![A-Za-z0-9_&#/])#(?=\d*[^\W\d])[\w{MARKS}]+")
TIME = re.compile(r"(?<![0-9:.])[0-9]{1,2}:[0-5][0-9](?::[0-5][0-9])?(?![0-9:])")
LINE_BREAK = re.compile(r"\r\n|\r|\n")

# What follows a link in a sentence, and belongs to the sentence.
AFTER_LINK = ".,;:!?'*_~"
BRACKETS = {")": "(", "]": "["}
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
    had, has = _kept_in(source), _kept_in(translation)
    return [
        *(lost for kind in had for lost in _fewer(kind, had[kind], has[kind])),
        # A link or a name that nobody has written is an attack, or a delusion.
        *(lost for kind in ("link", "mention") for lost in _more(kind, had[kind], has[kind])),
        *_line_breaks(source, translation),
    ]


def _kept_in(text: str) -> dict[str, Counter[str]]:
    links = Counter(_links(text))
    # What looks like a name or a time within a link is the link's.
    rest = LINK.sub(_behind_link, text).translate(WIDE)
    return {
        "link": links,
        "mention": Counter(MENTION.findall(rest)),
        "hashtag": Counter(HASHTAG.findall(rest)),
        "emoji": Counter(emoji_of(rest)),
        "time": Counter(TIME.findall(rest)),
    }


def _links(text: str) -> Iterator[str]:
    return (_link(found) for found in LINK.finditer(text))


def _link(found: re.Match[str]) -> str:
    link = found[0]
    while link[-1] in AFTER_LINK or _closes_nothing(link):
        link = link[:-1]
    return link


def _closes_nothing(link: str) -> bool:
    opening = BRACKETS.get(link[-1])
    return opening is not None and link.count(link[-1]) > link.count(opening)


def _behind_link(found: re.Match[str]) -> str:
    return " " + found[0][len(_link(found)) :]


def _fewer(kind: str, had: Counter[str], has: Counter[str]) -> Iterable[Lost]:
    for item, times in had.items():
        if kind == "emoji" and has[item] != times:
            yield Lost(kind, f"{item} exactly {times} times" if times > 1 else item)
        elif has[item] < times:
            yield Lost(kind, f"{item} {times} times" if times > 1 else item)


def _more(kind: str, had: Counter[str], has: Counter[str]) -> Iterable[Lost]:
    return (Lost(kind, f"nothing new, but there was {item}") for item in has if not had[item])


def _line_breaks(source: str, translation: str) -> Iterable[Lost]:
    had, has = (len(LINE_BREAK.findall(text)) for text in (source, translation))
    if had != has:
        yield Lost("line break", f"exactly {had} line breaks, not {has}")

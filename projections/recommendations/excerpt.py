"""Strangers' texts as a language model gets them: one line, bounded, with nothing unseen in it.

Invisible characters can carry orders that no person sees, and directional ones can show a text
as another one: https://www.unicode.org/reports/tr36/ and https://trojansource.codes
"""

from __future__ import annotations

import re
import unicodedata

ELLIPSIS = "…"
# Letters or marks by their category, and yet blank: fillers of Hangul, a joiner, vowels of Khmer,
# tags and selectors.
BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\U000e0000-\U000e0fff]")
# A few of these have uses; a long run is a message or a prank.
RUN = re.compile("[\u200c\u200d\ufe00-\ufe0f]{3,}")
JOINERS = "\u200c\u200d"
SKIN_TONES = range(0x1F3FB, 0x1F400)
FLAG_LETTERS = range(0x1F1E6, 0x1F200)
LONGEST_GRAPHEME = 32


def cut(line: str, limit: int) -> str:
    """The beginning of a line, of at most `limit` characters, cut between words.

    A word of more than half the limit is cut between graphemes
    (https://www.unicode.org/reports/tr29/), as far as marks, joined emoji and flags go.
    """
    if len(line) <= limit:
        return line
    end = limit - len(ELLIPSIS)
    space = line.rfind(" ", end // 2, end + 1)
    return line[: space if space > 0 else _grapheme(line, end)].rstrip() + ELLIPSIS


def plain(text: str) -> str:
    """A text without line breaks, control characters, directions, and characters without a look."""
    if not text.isprintable():
        text = "".join(map(_kept, text))
    if not text.isascii():
        text = RUN.sub("", BLANK.sub("", text))
    return " ".join(text.split())


def _kept(char: str) -> str:
    # Persian is written with one joiner, and families of emoji with the other.
    if char.isprintable() or char in JOINERS:
        return char
    category = unicodedata.category(char)
    if category == "Cn":
        # Emoji that are newer than this Python.
        return char
    return "" if category in ("Cf", "Co", "Cs") else " "


def _grapheme(line: str, end: int) -> int:
    """The nearest place at or before `end` where no grapheme is cut; `end` if none is near."""
    for place in range(end, max(end - LONGEST_GRAPHEME, 0), -1):
        if not _joined(line, place):
            return place
    return end


def _joined(line: str, place: int) -> bool:
    before, after = line[place - 1], line[place]
    if unicodedata.category(after)[0] == "M" or after in JOINERS or before in JOINERS:
        return True
    return ord(after) in SKIN_TONES or (ord(after) in FLAG_LETTERS and _odd_flag(line, place))


def _odd_flag(line: str, place: int) -> bool:
    """Whether the letters of flags before a place are an odd number: two of them are one flag."""
    start = place
    while start and ord(line[start - 1]) in FLAG_LETTERS:
        start -= 1
    return (place - start) % 2 == 1

"""What a translation has to keep of a comment: links, names, numbers, emoji, and a site's terms.

A check that refuses a good translation costs a second call, and then the translation. So whatever
another language writes in another way counts as kept: see tests/inputs/translations.tsv.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from infra.language.words import (
    DENSE,
    EMOJI,
    LATIN_LETTERS,
    SITE,
    SPACED,
    emoji_of,
    hashtags,
    links,
    mentions,
    occurrences,
    prose,
    without_links,
    words,
)

TIME = re.compile(r"(?<![0-9:.])[0-9]{1,2}:[0-5][0-9](?::[0-5][0-9])?(?![0-9:])")
LINE_BREAK = re.compile(r"\r\n|\r|\n")
WIDE = str.maketrans("\uff20\uff03\uff1a", "@#:")
MANY = 3
"""Of more than so many equal emoji it does not matter how many there are."""


class Lost(NamedTuple):
    """What a translation changed that it had to keep; `kind` is one of a few words."""

    kind: str
    what: str


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _begun(term: str) -> str:
    """Return a pattern of the term where a word begins."""
    case = "i" if term == term.lower() else "-i"
    edge = f"(?<![{LATIN_LETTERS}{SPACED}])" if re.match(f"[{LATIN_LETTERS}{SPACED}]", term) else ""
    return f"{edge}(?{case}:{re.escape(term)})"


def _whole(term: str) -> str:
    """Return a pattern of the term as a whole word."""
    ends = re.search(f"[{LATIN_LETTERS}{SPACED}]$", term)
    return _begun(term) + (f"(?![{LATIN_LETTERS}{SPACED}])" if ends else "")


class Glossary:
    """Terms that are not translated.

    One in small letters is meant in any case, one with capitals as it is written. In scripts that
    part words by spaces a term is a whole word; in a translation it may have an ending.
    """

    def __init__(self, terms: Sequence[str] = ()) -> None:
        # The longest first: it may hold another one.
        self._terms = sorted(set(map(_composed, terms)), key=lambda term: (-len(term), term))

    @cached_property
    def edition(self) -> str:
        """What tells it from glossaries with other terms; "" of an empty one."""
        if not self._terms:
            return ""
        return hashlib.sha256("\n".join(self._terms).encode()).hexdigest()[:16]

    def terms_in(self, text: str) -> list[str]:
        """Return the terms that occur in the text, each once."""
        text = _composed(text)
        small = text.lower()
        # Few do; a pattern of all would be tried at each letter.
        near = [term for term in self._terms if term.lower() in small]
        pattern = "|".join(f"({_whole(term)})" for term in near)
        matches = re.finditer(pattern, text) if near else ()
        return list(dict.fromkeys(near[(found.lastindex or 0) - 1] for found in matches))


NO_TERMS = Glossary()


def missing(source: str, translation: str, glossary: Glossary = NO_TERMS) -> list[str]:
    """Return what the translation lost or made up, as a translator is told."""
    return [lost.what for lost in lost_in(source, translation, glossary)]


def lost_in(source: str, translation: str, glossary: Glossary = NO_TERMS) -> list[Lost]:
    """Return what the translation lost or made up, in the order of the source, kind by kind."""
    source, translation = source.translate(WIDE), translation.translate(WIDE)
    had, has = _kept_in(source), _kept_in(translation)
    lost = [each for kind in had for each in _fewer(kind, had[kind], has[kind], translation)]
    lost += _new(had, has, source)
    lost += _changed_numbers(_numbers(source), _numbers(translation))
    lost += _lost_terms(glossary, source, translation)
    lines, its_lines = _breaks(source), _breaks(translation)
    if lines != its_lines:
        lost.append(Lost("line break", f"exactly {lines} line breaks, not {its_lines}"))
    if weight(translation) > MOST_TIMES * weight(source) + SLACK:
        lost.append(Lost("length", "nothing added: the translation is too long"))
    return lost


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


def _plain(link: str) -> str:
    """Return a link whose host is in small letters: sentences begin with it."""
    host = SITE.match(link)
    end = host.end() if host else len(link) * ("/" not in link)
    return link[:end].lower() + link[end:]


def _fewer(kind: str, had: Counter[str], has: Counter[str], translation: str) -> Iterator[Lost]:
    plain = Counter(map(_plain, has.elements())) if kind == "link" else has
    for item, times in had.items():
        if kind == "emoji":
            kept = has[item] == times or min(has[item], times) > MANY
        else:
            # Where the translation goes on without a space, the item seems to be longer there.
            kept = has[item] >= times or occurrences(item, translation) >= times
        if kind == "link":
            kept = kept or plain[_plain(item)] >= times
        elif kind == "mention" and not kept and "." in item:
            # A full stop without a space makes one name of two words.
            first = item.partition(".")[0]
            kept = has[first] > had[first]
        if not kept:
            exactly = "exactly " if kind == "emoji" else ""
            yield Lost(kind, f"{item} {exactly}{times} times" if times > 1 else item)


def _new(had: dict[str, Counter[str]], has: dict[str, Counter[str]], source: str) -> Iterator[Lost]:
    """Yield links and names that nobody has written: an attack, or a delusion."""
    known = set(map(_plain, had["link"]))
    for link in has["link"]:
        if not occurrences(link, source) and _plain(link) not in known:
            yield Lost("link", f"nothing new, but there was {link}")
    for name in has["mention"]:
        if not occurrences(name, source) and not _goes_on(had["mention"], name):
            yield Lost("mention", f"nothing new, but there was {name}")


def _goes_on(names: Counter[str], longer: str) -> bool:
    """Return whether it is one of the names, and what another script says right behind it."""
    starts = (longer[:end] for end in range(2, len(longer) + 1))
    return any(start in names and occurrences(start, longer) > 0 for start in starts)


def _lost_terms(glossary: Glossary, source: str, translation: str) -> Iterator[Lost]:
    translation = _composed(translation)
    for term in glossary.terms_in(source):
        if not re.search(_begun(term), translation):
            yield Lost("term", term)


def _breaks(text: str) -> int:
    """Return how many line breaks there are, those of empty lines not counted."""
    return max(sum(bool(line.strip()) for line in LINE_BREAK.split(text)) - 1, 0)


MOST_TIMES, SLACK = 3, 40
"""A translation is at most so many times as long as the comment, and so many letters longer."""
SYLLABLE = re.compile("[\u3041-\u30ff\uac00-\ud7a3]")


def weight(text: str) -> int:
    """Return how many Latin letters it takes to say as much, roughly."""
    return len(text) + 2 * len(DENSE.findall(text)) + len(SYLLABLE.findall(text))


def spoken_anew(source: str, translation: str) -> str:
    """Return what of a translation shows its language: its words that are not the comment's.

    Names and quotations stay what they are. Where there are no others, return all of them.
    """
    known, said = set(words(source).lower().split()), words(translation)
    return " ".join(word for word in said.split() if word.lower() not in known) or said


# Grouped by thousands, grouped as in India, with decimals, or neither; a date is neither.
_SEPARATORS = "[.,'\u2019\u066c\u00a0\u202f ]"
NUMBER = re.compile(
    rf"(?<!\d)\d{{1,3}}(?:({_SEPARATORS})\d{{3}})(?:\1\d{{3}})*(?!\d)(?:[.,\u066b]\d+(?![.,]?\d))?"
    r"|(?<!\d)\d{1,2}(?:,\d{2})+,\d{3}(?!\d)"
    r"|(?<![\d.,])\d+[.,\u066b]\d+(?![.,]?\d)"
    r"|\d+"
)
# 555 is laughter in Thai, 2333 in Chinese, where 666 is praise.
REPEATED_DIGIT = re.compile(r"\d?(\d)\1{2,}")
# Between the hours of 12 and of 24, and from the years of the Thai and the Persian calendar.
OTHER_CLOCK, OTHER_CALENDARS = 12, (543, 621, 622)
FEW = 50
SPOKEN, WRITTEN = 2, 4
"""Of so many digits, without zeros around, a number may become a word, and a word a number."""


def _numbers(text: str) -> list[str]:
    """Return the digits of each number: its separators differ from language to language."""
    rest = TIME.sub(" ", EMOJI.sub(" ", prose(text)))
    found = (match[0] for match in NUMBER.finditer(unicodedata.normalize("NFKC", rest)))
    return ["".join(str(int(char)) for char in number if char.isdigit()) for number in found]


def _changed_numbers(had: list[str], has: list[str]) -> Iterator[Lost]:
    """Yield numbers that became others, and long ones that are gone or new.

    Zeros at either end don't count: 3万 is 30,000, and 1.5 million is 150万.
    """
    lost, new = _without(had, has), _without(has, had)
    # Others than these few are many anyway.
    same = [(one, other) for one in lost[:FEW] for other in new[:FEW] if _is_same(one, other)]
    lost = [one for one in lost if one not in {pair[0] for pair in same}]
    new = [one for one in new if one not in {pair[1] for pair in same}]
    # 2만5천 is 25,000, and a list without spaces is no number.
    if _digits("".join(lost)) == _digits("".join(new)):
        return
    if not new:
        lost = [one for one in lost if len(_digits(one)) > SPOKEN]
        lost = [one for one in lost if not REPEATED_DIGIT.fullmatch(one)]
    if not lost:
        new = [one for one in new if len(_digits(one)) > WRITTEN]
        yield from (Lost("number", f"nothing new, but there was {one}") for one in new)
    yield from (Lost("number", one) for one in dict.fromkeys(lost))


def _without(numbers: list[str], others: list[str]) -> list[str]:
    known = set(map(_digits, others))
    return [one for one in numbers if _digits(one) not in known]


def _is_same(number: str, other: str) -> bool:
    """Return whether one of them may be the other, as another language writes it."""
    short, long = sorted((number, other), key=len)
    if len(short) == 2 and len(long) == 4 and long.endswith(short):
        return True
    low, high = sorted((int(number), int(other))) if len(long) <= WRITTEN else (0, 0)
    return (0 < low <= 12 and high - low == OTHER_CLOCK) or high - low in OTHER_CALENDARS


def _digits(number: str) -> str:
    return number.strip("0") or "0"

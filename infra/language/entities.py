"""Links, mentions, hashtags and e-mail addresses in a comment: where each begins and ends.

One set of patterns for all who ask: a detector leaves these out, a translation has to keep them.

In Chinese, Japanese, Thai and others no space says where a link or a name ends and the sentence
goes on. A link, and a name in Latin letters, end there; a name in such a script is one as long as
it is short, and else the sentence itself.
"""

from __future__ import annotations

import re

# Scripts that part words by spaces, and their marks. (Korean does too, but glues particles to
# whatever goes before: it counts to those without spaces here.)
LATIN_LETTERS = "A-Za-z0-9\u00c0-\u024f\u0300-\u036f\u1e00-\u1eff"
LATIN = LATIN_LETTERS + "_"
SPACED = (
    "\u0370-\u0527\u0531-\u0556\u0561-\u0587\u0591-\u05bd\u05d0-\u05ea\u0621-\u0652\u0660-\u0669"
    "\u0671-\u06d3\u06f0-\u06f9\u0900-\u0963\u0966-\u0dff\u10a0-\u10ff\u1200-\u137f\u1f00-\u1fff"
)
# Parts of words that Python does not count as such: vowel signs, and what joins letters.
MARKS = (
    "\u0300-\u036f\u0591-\u05bd\u064b-\u0652\u0900-\u0963\u0966-\u0dff\u0e31-\u0e4e\u0eb1-\u0ecd"
    "\u0f71-\u0fbc\u102b-\u103e\u17b4-\u17d3\u200c\u200d"
)
RUN = rf"[\w{MARKS}]"

# Within a link another script begins behind a separator only: `/wiki/фильм`, not `/wikiфильм`.
SEPARATORS = r".~:/?#\[\]@!$&'()*+,;=%-"
BODY = rf"(?:[{LATIN}{SEPARATORS}]|(?<![{LATIN_LETTERS}])[{SPACED}])"
UNSPACED_DOMAINS = "中国|中國|香港|台湾|台灣|公司|网络|網絡|在线|みんな|コム|ไทย|한국"
# Without a scheme and a slash, only these make a link; `end.Then` is a typing error.
USUAL_DOMAINS = "com|org|net|edu|gov|info|tv|io|gg|app|dev"
LINK = re.compile(
    rf"https?://(?:(?:[\w-]+\.)+(?:{UNSPACED_DOMAINS}){BODY}*|{BODY}+)"
    rf"|(?<![{LATIN}@./-])(?:www\.{BODY}+|(?:[{LATIN_LETTERS}-]+\.)+"
    rf"(?:[a-z]{{2,}}/{BODY}*|(?:{USUAL_DOMAINS})(?![{LATIN}-])))"
    rf"|(?<![{SPACED}@./-])(?:[{SPACED}-]+\.)+[{SPACED}]{{2,}}/{BODY}*",
    re.IGNORECASE,
)
# A link, and the word without a space behind it.
LINK_AND_TAIL = re.compile(rf"({LINK.pattern})({RUN}*)", re.IGNORECASE)
MENTION = re.compile(rf"(?<![A-Za-z0-9_@./-])@(?:[{LATIN}](?:[{LATIN}.·-]*[{LATIN}])?|{RUN}+)")
# Digits alone are no hashtag: whoever is "#1" is the first.
HASHTAG = re.compile(rf"(?<![A-Za-z0-9_&#/])#(?=\d*[^\W\d]){RUN}+")
EMAIL = re.compile(
    rf"(?<![{LATIN}{SPACED}.%+-])[{LATIN}{SPACED}.%+-]+@(?:[{LATIN}{SPACED}-]+\.)+[{LATIN}{SPACED}]+"
)

# What follows a link in a sentence, and belongs to the sentence.
AFTER_LINK = ".,;:!?'*_~"
SITE = re.compile(r"(?:https?://)?[^/]+/", re.IGNORECASE)
BRACKETS = {")": "(", "]": "["}

# How long a name is at most: letters of scripts in which one is a word or a syllable, and of those
# in which a word takes some.
DENSE = re.compile("[\u3041-\u309f\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]")
LOOSE = re.compile("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\uac00-\ud7a3]")
MOST_DENSE, MOST_LOOSE = 6, 10


def links(text: str) -> list[str]:
    """Return each link in turn, without the punctuation of the sentence around it."""
    return [_link(found[0]) for found in LINK.finditer(text)]


def without_links(text: str) -> str:
    """Return the text with a space for each link."""
    return LINK.sub(lambda found: " " + found[0][len(_link(found[0])) :], text)


def mentions(text: str) -> list[str]:
    """Return each `@name` of a text without links."""
    return _names(MENTION, text)


def hashtags(text: str) -> list[str]:
    """Return each `#label` of a text without links."""
    return _names(HASHTAG, text)


def occurrences(item: str, text: str) -> int:
    """Return how often a link or a name stands in a text, whatever other script follows it."""
    goes_on = LATIN if re.search(f"[{LATIN_LETTERS}]$", item) else LATIN + SPACED
    return len(re.findall(rf"{re.escape(item)}(?![{goes_on}])", text))


def prose(text: str) -> str:
    """Return the text with a space for each link, address, mention and hashtag.

    So is a short word in a path (`/wiki/東京`), where the script does not say whether it is one.
    """
    said = LINK_AND_TAIL.sub(_tail_in_prose, text)
    said = EMAIL.sub(" ", said)
    for pattern in (MENTION, HASHTAG):
        said = pattern.sub(lambda found: " " if _is_name(found[0]) else found[0], said)
    return said


def _names(pattern: re.Pattern[str], text: str) -> list[str]:
    return [name for name in pattern.findall(text) if _is_name(name)]


def _is_name(run: str) -> bool:
    """Return whether it is short enough for a name; a longer one is a sentence without spaces."""
    letters = [char for char in run if char.isalpha()]
    return (
        sum(map(bool, map(DENSE.match, letters))) <= MOST_DENSE
        and sum(map(bool, map(LOOSE.match, letters))) <= MOST_LOOSE
    )


def _link(found: str) -> str:
    link = found
    while link[-1] in AFTER_LINK or _closes_nothing(link):
        link = link[:-1]
    return link.removesuffix("/") if SITE.fullmatch(link) else link


def _closes_nothing(link: str) -> bool:
    opening = BRACKETS.get(link[-1])
    return opening is not None and link.count(link[-1]) > link.count(opening)


def _tail_in_prose(found: re.Match[str]) -> str:
    whole, tail = found[1], found[2]
    if whole.endswith(("/", "=")) and _is_name(tail):
        tail = ""
    return " " + whole[len(_link(whole)) :] + tail

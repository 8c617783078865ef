"""What of a comment is words: every detector looks at these alone.

Whatever else a comment has would be evidence for some language by accident.
"""

from __future__ import annotations

import re
import unicodedata

MIN_LETTERS = 3
"""Shorter texts are shared by many languages: `ok`, `no`, `xD`."""
MIN_SYLLABLES = 2
"""The same for scripts in which a letter is a syllable or a word."""

# Each pattern here takes linear time: whoever writes a comment would like to know otherwise.
URL = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
REPEATED = r"(\w{1,2}?)\1{2,}\w?"
HAHA = "[ab]?(?:[hj][aeio]){2,}[hj]?"
HAHA_IN_CYRILLIC = "\u0430?(?:\u0445[\u0430\u0435\u0438\u043e]){2,}\u0445?"
LAUGHTER = re.compile(f"{REPEATED}|{HAHA}|{HAHA_IN_CYRILLIC}", re.IGNORECASE)
ELONGATED = re.compile(r"(\w)\1{2,}")
# Understood everywhere; a comment of nothing else needs no translation.
EVERYWHERE = frozenset({"gg", "lmao", "lol", "ok", "okay", "omg", "rofl", "wow", "wtf", "xd"})
# Apostrophes, and the joiners of Persian and of Indic scripts, stand inside words.
INSIDE_WORDS = "'\u2019\u200c\u200d"
LONE_JAMO = range(0x1100, 0x1200)
"""Parts of Korean syllables, which alone are laughter or tears."""
KANA = "\u3040"
"""From here on, letters are syllables or words: kana, Han, Hangul."""


class _Letters(dict[int, str]):
    """For `str.translate`: letters and marks as they are, a space for all else."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        is_letter = unicodedata.category(char)[0] in "LM" and code not in LONE_JAMO
        return self.setdefault(code, char if is_letter or char in INSIDE_WORDS else " ")


_LETTERS = _Letters()


def words(text: str) -> str:
    """The words of a text with single spaces between them, or "" where there are none to go by.

    Links, mentions, hashtags, digits, punctuation, emoji and laughter are left out, as are line
    breaks; `sooooo` becomes `so`.
    """
    tokens = URL.sub(" ", unicodedata.normalize("NFKC", text)).split()
    letters = " ".join(token for token in tokens if not _is_name(token)).translate(_LETTERS)
    spoken = [word for word in letters.split() if not LAUGHTER.fullmatch(word)]
    if all(word.lower() in EVERYWHERE for word in spoken) or _too_short(spoken):
        return ""
    return " ".join(ELONGATED.sub(r"\1", word) for word in spoken)


def _is_name(token: str) -> bool:
    """Whether it is a mention, a hashtag, an e-mail address, or a link without its scheme."""
    user, at, host = token.partition("@")
    site, slash, _ = token.partition("/")
    return (
        token.lstrip("([\"'").startswith(("@", "#"))
        or (user != "" and at != "" and "." in host)
        or (slash != "" and "." in site[1:-1])
    )


def _too_short(spoken: list[str]) -> bool:
    letters = [char for word in spoken for char in word if char.isalpha()]
    least = MIN_SYLLABLES if any(char >= KANA for char in letters) else MIN_LETTERS
    return len(letters) < least

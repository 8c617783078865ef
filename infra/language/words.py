"""What of a comment is words: every detector looks at these alone.

Whatever else a comment has would be evidence for some language by accident.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

from infra.language.emoji import EMOJI
from infra.language.entities import prose
from infra.language.laughter import is_exclamation, is_laughter
from infra.language.scripts import script

MIN_LETTERS = 3
"""Shorter texts are shared by many languages: `ok`, `no`, `xD`."""
MIN_SYLLABLES = 2
"""The same for scripts in which a letter is a syllable or a word."""

# Not Han: 好好好 is no lengthened 好.
ELONGATED = re.compile("([^\\W\u3400-\u9fff])\\1{2,}")
# `:joy:`, `:face-red-heart-shape:`: emoji that a site draws itself.
SHORTCODE = re.compile(r"(?<![A-Za-z0-9:]):[A-Za-z][A-Za-z0-9_+-]*:(?![A-Za-z0-9:])")
# Apostrophes, and the joiners of Persian and of Indic scripts, stand inside words.
INSIDE_WORDS = "'\u2019\u200c\u200d"
LONE_JAMO = range(0x1100, 0x1200)
"""Parts of Korean syllables, which alone are laughter or tears."""
KANA = "\u3040"
"""From here on, letters are syllables or words: kana, Han, Hangul."""
# Scripts whose words may have a single letter wherever they stand.
WORD_A_LETTER = ("CJK", "HANGUL")
JAPANESE = frozenset(("CJK", "HIRAGANA", "KATAKANA"))
# Laughter, right behind a sentence in Japanese or before one.
WWW = re.compile(
    "(?<=[\u3040-\u30ff\u3400-\u9fff])w+(?![a-z])|(?<![a-z])w{2,}(?=[\u3040-\u30ff\u3400-\u9fff])",
    re.IGNORECASE,
)


class _Letters(dict[int, str]):
    """For `str.translate`: letters and marks as they are, a space for all else.

    A variation selector only says how the character before it looks.
    """

    def __missing__(self, code: int) -> str:
        char = chr(code)
        is_letter = unicodedata.category(char) in ("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc")
        if is_letter and "VARIATION SELECTOR" in unicodedata.name(char, ""):
            return self.setdefault(code, "")
        is_word = (is_letter and code not in LONE_JAMO) or char in INSIDE_WORDS
        return self.setdefault(code, char if is_word else " ")


_LETTERS = _Letters()


def words(text: str) -> str:
    """The words of a text with single spaces between them, or "" where there are none to go by.

    Links, addresses, mentions, hashtags, digits, punctuation, emoji, kaomoji and laughter are left
    out, as are line breaks; `sooooo` becomes `so`.
    """
    said = prose(unicodedata.normalize("NFKC", EMOJI.sub(" ", text)))
    letters = WWW.sub(" ", SHORTCODE.sub(" ", said)).translate(_LETTERS).split()
    spoken = [ELONGATED.sub(r"\1", word) for word in letters if _is_spoken(word)]
    spoken = _without_limbs(spoken)
    if all(map(is_exclamation, spoken)) or _too_short(spoken):
        return ""
    return " ".join(spoken)


def _is_spoken(word: str) -> bool:
    return any(map(str.isalpha, word)) and not is_laughter(word)


def _without_limbs(spoken: list[str]) -> list[str]:
    """The words without those of single letters in a script that nothing else is written in.

    They are limbs of kaomoji, such as `(づ｡◕‿‿◕｡)づ`.
    """
    if all(map(str.isascii, spoken)):
        return spoken
    scripts = [[script(char) for char in word if char not in INSIDE_WORDS] for word in spoken]
    written = {one for each in scripts if not _is_limb(each) for one in each}.union(WORD_A_LETTER)
    return [word for word, each in zip(spoken, scripts, strict=True) if written.issuperset(each)]


def _is_limb(scripts: list[str]) -> bool:
    """Whether no two letters side by side are of one script; 見て is a word all the same."""
    if len(scripts) > 1 and JAPANESE.issuperset(scripts):
        return False
    return all(one != following for one, following in pairwise(scripts))


def _too_short(spoken: list[str]) -> bool:
    letters = [char for word in spoken for char in word if char.isalpha()]
    least = MIN_SYLLABLES if any(char >= KANA for char in letters) else MIN_LETTERS
    return len(letters) < least

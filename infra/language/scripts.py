"""Scripts of letters, and the languages that alone are written in one."""

from __future__ import annotations

import unicodedata
from collections import Counter
from types import MappingProxyType

from infra.language.port import Detection

LANGUAGES = MappingProxyType(
    {
        "ARMENIAN": "hy",
        "GEORGIAN": "ka",
        "GREEK": "el",
        "GUJARATI": "gu",
        "GURMUKHI": "pa",
        "HANGUL": "ko",
        "HIRAGANA": "ja",
        "KANNADA": "kn",
        "KATAKANA": "ja",
        "KHMER": "km",
        "LAO": "lo",
        "MALAYALAM": "ml",
        "MYANMAR": "my",
        "ORIYA": "or",
        "SINHALA": "si",
        "TAMIL": "ta",
        "TELUGU": "te",
        "THAANA": "dv",
        "THAI": "th",
        "TIBETAN": "bo",
    }
)
KANA = ("HIRAGANA", "KATAKANA")
LEAST_KANA = 2
"""Letters that make the Chinese characters around them Japanese; の alone decorates brands."""


def script(letter: str) -> str:
    """Its script, as the name of a letter begins with it: LATIN, CJK, HANGUL."""
    return unicodedata.name(letter, "").partition(" ")[0]


def language_of_script(spoken: str) -> Detection | None:
    """The language that most letters can only be of, with their share; None where none is.

    None for Latin, Cyrillic, Arabic and the other scripts of several languages.
    """
    if spoken.isascii():
        return None
    letters = Counter(script(char) for char in spoken if char.isalpha())
    languages = Counter[str]()
    for name, count in letters.items():
        if name in LANGUAGES:
            languages[LANGUAGES[name]] += count
    if sum(letters[kana] for kana in KANA) >= LEAST_KANA:
        languages["ja"] += letters["CJK"]
    [(language, count)] = languages.most_common(1) or [("", 0)]
    share = count / max(letters.total(), 1)
    return Detection(language, share) if share > 0.5 else None

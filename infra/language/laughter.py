"""Laughter, as it is typed in many scripts, and exclamations that are understood everywhere."""

# ruff: noqa: RUF001, RUF003 - letters of many scripts

from __future__ import annotations

import re

# Of at most two different letters, one of these among them: haha, jajajaj, ахахах, χαχα, חחחח.
LAUGHING = frozenset("hjkxхкχחהهخհխჰ")
LEAST_LAUGH = 4

SIGNS = (
    "[\u0901-\u0903\u093a-\u094f\u0981-\u0983\u09bc-\u09cd\u0a01-\u0a03\u0a3c-\u0a4d\u0a81-\u0a83"
    "\u0abc-\u0acd\u0b82\u0bbe-\u0bcd\u0c00-\u0c04\u0c3e-\u0c4d\u0c81-\u0ccd\u0d00-\u0d03\u0d3e-\u0d4d]*"
)
# One or two letters again and again: kkkk, rsrsrs, lalala. Of syllables one, and not of Han:
# 加油加油加油 and 좋아좋아좋아 say something.
REPEATED = re.compile(rf"((?:[^\W\u3040-\U0010ffff]{SIGNS}){{1,2}}?)\1{{2,}}\w?")
REPEATED_SYLLABLE = re.compile("([\u3040-\u30ff\uac00-\ud7a3])\\1{2,}")
WITH_MORE_LETTERS = re.compile(r"[bmw]{0,2}[aeiou]{0,2}([hjx])+([aeiou])(?:\1+\2+)+\1*")
TYPED_AT_RANDOM = re.compile(
    r"a?(?:rs|wk|ks|sk|js|sj|hs|jd){2,}\w?|asdf\w*|(?!.*a.*a)[asdfghjkl]{7,}"
)
OF_THREE_LETTERS = re.compile(r"(?:[hjm]u[ae]|lo|ke){2,}[lk]?")
INDIC = re.compile(rf"([\u0939\u09b9\u0bb9\u0c39\u0d39\u0cb9\u0ab9\u0a39]{SIGNS})\1+")
THAI = re.compile("(?:(?:ฮ[\u0e48\u0e49]?า|[ฮอคห][\u0e34-\u0e39])ๆ*){2,}|ฮ[\u0e48\u0e49]?าๆ+")
HANGUL = re.compile("푸?([하히호헤후흐크캬])\\1+")
HAN = re.compile("[哈呵嘿嘻吼嗷啊噢哦嗯哇草笑]{2,}")
KANA = re.compile("[あいうえわぎアイウエワギ]?[ゃャ]?([はひふへほハヒフヘホ])\\1+[っッー]*")
PATTERNS = (
    REPEATED, REPEATED_SYLLABLE, WITH_MORE_LETTERS, TYPED_AT_RANDOM, OF_THREE_LETTERS,
    INDIC, THAI, HANGUL, HAN, KANA,
)  # fmt: skip

# One laughing syllable: a word of some languages, but none where every word is one: ha ha ha.
SYLLABLE = re.compile(
    f"[hjx][aeiou]|х[аеиоы]|χ[αει]|ه[اهي]|ہا|ח[הא]|[\u0939\u09b9\u0bb9\u0c39\u0d39\u0cb9]{SIGNS}"
)
_EXCLAMATIONS = """
ah aah aw aww eh gg hm hmm kek lmao lmfao lol lul oh ok okay omg ooh owo rofl uwu wow wtf xd xoxo
yay вау кек лол ок омг واو لول
"""
EXCLAMATIONS = frozenset(_EXCLAMATIONS.split())


def is_laughter(word: str) -> bool:
    """Whether a word is laughter, or letters again and again."""
    small = word.lower()
    letters = frozenset(small)
    of_two = len(small) >= LEAST_LAUGH and len(letters) <= 2 and not letters.isdisjoint(LAUGHING)
    return of_two or any(pattern.fullmatch(small) for pattern in PATTERNS)


def is_exclamation(word: str) -> bool:
    """Whether a word needs no translation where nothing else is said: `wow`, `ha`, a letter."""
    small = word.lower()
    return len(small) == 1 or small in EXCLAMATIONS or SYLLABLE.fullmatch(small) is not None

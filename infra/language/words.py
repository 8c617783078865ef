"""What of a comment is words, and its links, names and emoji: where each begins and ends.

Every detector looks at the words alone: whatever else a comment has would be evidence for some
language by accident. A translation has to keep the links, mentions, hashtags and emoji.

In Chinese, Japanese, Thai and others no space says where a link or a name ends and the sentence
goes on. A link, and a name in Latin letters, end there; a name in such a script is one as long as
it is short, and else the sentence itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

# ruff: noqa: RUF001, RUF003 - letters of many scripts

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
    # A bracket that closes nothing belongs to the sentence, too.
    while (end := link[-1]) in AFTER_LINK or link.count(end) > link.count(BRACKETS.get(end, end)):
        link = link[:-1]
    return link.removesuffix("/") if SITE.fullmatch(link) else link


def _tail_in_prose(found: re.Match[str]) -> str:
    whole, tail = found[1], found[2]
    if whole.endswith(("/", "=")) and _is_name(tail):
        tail = ""
    return " " + whole[len(_link(whole)) :] + tail


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
OF_THREE_LETTERS = re.compile(r"(?:[hjm]u[ae]|lo|ke){2,}[lk]?|(?=(?:.*h){2})[aehu]{6,}")
INDIC = re.compile(rf"([\u0939\u09b9\u0bb9\u0c39\u0d39\u0cb9\u0ab9\u0a39]{SIGNS})\1+")
THAI = re.compile("(?:(?:ฮ[\u0e48\u0e49]?า|[ฮอคห][\u0e34-\u0e39])ๆ*){2,}|ฮ[\u0e48\u0e49]?าๆ+")
HANGUL = re.compile("푸?([하히호헤후흐크캬])\\1+")
HAN = re.compile("[哈呵嘿嘻吼嗷啊噢哦嗯哇草笑]{2,}")
KANA_LAUGHTER = re.compile(
    "[あいうえわぎアイウエワギ]?[ゃャ]?([はひふへほハヒフヘホ])\\1+[っッー]*"
)
PATTERNS = (
    REPEATED, REPEATED_SYLLABLE, WITH_MORE_LETTERS, TYPED_AT_RANDOM, OF_THREE_LETTERS,
    INDIC, THAI, HANGUL, HAN, KANA_LAUGHTER,
)  # fmt: skip

# One laughing syllable: a word of some languages, but none where every word is one: ha ha ha.
SYLLABLE = re.compile(
    f"[hjx][aeiou]|х[аеиоы]|χ[αει]|ه[اهي]|ہا|ח[הא]|[\u0939\u09b9\u0bb9\u0c39\u0d39\u0cb9]{SIGNS}"
    "|ฮ[\u0e30-\u0e4e]*"
)
_EXCLAMATIONS = """
ah aah aw aww brr eh gg hm hmm kek lmao lmfao lol lul lulz mdr oh ok okay omfg omg ooh owo pff ptdr
rofl uff ugh uwu wow wtf xd xoxo xptdr yay азаза вау кек лол ок омг واو لول
哈 呵 嘿 嘻 吼 嗷 啊 噢 哦 嗯 哇 笑 하 히 호 헤 후 흐 크 캬 아 어 오 우 음
"""
EXCLAMATIONS = frozenset(_EXCLAMATIONS.split())

STYLE = "\ufe0f"
# Characters with the property Emoji; those of Latin-1 and punctuation only where STYLE follows.
PICTURES = (
    "⌚⌛⌨⏏⏩-⏳⏸-⏺▪▫▶◀◻-◾☀-☄☎☑☔☕☘☝☠☢☣☦☪☮☯☸-☺♀♂♈-♓♟♠♣♥♦♨♻♾♿⚒-⚗⚙⚛⚜⚠⚡⚧⚪⚫⚰⚱⚽⚾⛄⛅⛈⛎⛏⛑⛓⛔⛩⛪⛰-⛵⛷-⛺⛽"
    "✂✅✈-✍✏✒✔✖✝✡✨✳✴❄❇❌❎❓-❕❗❣❤\u2795-\u2797➡➰➿⤴⤵⬅-⬇⬛⬜⭐⭕"
    "\U0001f004\U0001f0cf\U0001f170-\U0001f1e5\U0001f200-\U0001f3fa\U0001f400-\U0001faff"
)
STYLED = "©®‼⁉™\u2139↔-↪Ⓜ〰〽㊗㊙"
SKIN = "\U0001f3fb-\U0001f3ff"
FLAG = "[\U0001f1e6-\U0001f1ff]{2}"
KEYCAP = f"[0-9#*]{STYLE}?\u20e3"
# England, Scotland and Wales: a black flag with its name in invisible letters.
REGION = "\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f"
ONE = f"(?:[{PICTURES}{SKIN}]|[{STYLED}](?={STYLE})){STYLE}?[{SKIN}]?"
EMOJI = re.compile(f"{FLAG}|{KEYCAP}|{REGION}|{ONE}(?:\u200d{ONE})*")

_LANGUAGES = """
ARMENIAN:hy GEORGIAN:ka GREEK:el GUJARATI:gu GURMUKHI:pa HANGUL:ko HIRAGANA:ja KANNADA:kn
KATAKANA:ja KHMER:km LAO:lo MALAYALAM:ml MYANMAR:my ORIYA:or SINHALA:si TAMIL:ta TELUGU:te
THAANA:dv THAI:th TIBETAN:bo
"""
# The one language of a script.
LANGUAGES = dict(pair.split(":") for pair in _LANGUAGES.split())
KANA = ("HIRAGANA", "KATAKANA")
_SYLLABIC = """
BENGALI DEVANAGARI ETHIOPIC GUJARATI GURMUKHI HIRAGANA JAVANESE KANNADA KATAKANA KHMER LAO MALAYALAM
MYANMAR ORIYA SINHALA TAMIL TELUGU THAANA THAI TIBETAN
"""
SYLLABIC = frozenset(_SYLLABIC.split())
LEAST_KANA = 2
"""Letters that make the Chinese characters around them Japanese; の alone decorates brands."""

MIN_LETTERS = 3
"""Shorter texts are shared by many languages: `ok`, `no`, `xD`."""
MIN_SYLLABIC = 2
"""The least number of kana, each of which is a syllable; a Han or Hangul letter is a word. Also of
letters and signs where a sign is half a syllable: ดี, जय."""

# Not Han: 好好好 is no lengthened 好.
ELONGATED = re.compile("([^\\W\u3400-\u9fff])\\1{2,}")
# `:joy:`, `:face-red-heart-shape:`: emoji that a site draws itself.
SHORTCODE = re.compile(r"(?<![A-Za-z0-9:]):[A-Za-z][A-Za-z0-9_+-]*:(?![A-Za-z0-9:])")
# Apostrophes, and the joiners of Persian and of Indic scripts, stand inside words.
INSIDE_WORDS = "'\u2019\u200c\u200d"
LONE_JAMO = range(0x1100, 0x1200)
"""Parts of Korean syllables, which alone are laughter or tears."""
# Scripts whose words may have a single letter wherever they stand.
WORD_A_LETTER = ("CJK", "HANGUL")
JAPANESE = frozenset(("CJK", "HIRAGANA", "KATAKANA"))
# One kana and nothing else: 「え？」; beside other signs it is a limb of kaomoji.
LONE_KANA = re.compile(r"[\s!?.…。~〜ー]*([\u3041-\u3096\u30a1-\u30fa])[\s!?.…。~〜ー]*")
# Laughter, right behind a sentence in Japanese or before one.
WWW = re.compile(
    "(?<=[\u3040-\u30ff\u3400-\u9fff])w+(?![a-z])|(?<![a-z])w{2,}(?=[\u3040-\u30ff\u3400-\u9fff])",
    re.IGNORECASE,
)


def is_exclamation(word: str) -> bool:
    """Return whether a word alone needs no translation: `wow`, `ha`, a letter; 好 is a word."""
    small = word.lower()
    if small in EXCLAMATIONS or SYLLABLE.fullmatch(small):
        return True
    return len(small) == 1 and script(small) not in WORD_A_LETTER


def emoji_of(text: str) -> Iterator[str]:
    """Yield each emoji in turn; the invisible mark of its style is left out: it comes and goes."""
    return (found[0].replace(STYLE, "") for found in EMOJI.finditer(text))


def script(letter: str) -> str:
    """Return a letter's script, with which its name begins: LATIN, CJK, HANGUL."""
    return unicodedata.name(letter, "").partition(" ")[0]


def language_of_script(spoken: str) -> tuple[str, float] | None:
    """Return the language that most letters can only be of, with their share; None where none is.

    None for Latin, Cyrillic, Arabic and the other scripts of several languages, and for Chinese
    characters that Japanese has, too.
    """
    if spoken.isascii():
        return None
    letters = Counter(script(char) for char in spoken if char.isalpha())
    if set(letters) == {"CJK"} and not _is_japanese(spoken):
        return "zh", 1.0
    languages = Counter[str]()
    for name, count in letters.items():
        if name in LANGUAGES:
            languages[LANGUAGES[name]] += count
    if sum(letters[kana] for kana in KANA) >= LEAST_KANA:
        languages["ja"] += letters["CJK"]
    [(language, count)] = languages.most_common(1) or [("", 0)]
    share = count / max(letters.total(), 1)
    return (language, share) if share > 0.5 else None


def _is_japanese(han: str) -> bool:
    """Return whether Japanese character sets have all of these: 爱 and 赞 are Chinese only."""
    try:
        han.encode("cp932")
    except UnicodeEncodeError:
        return False
    return True


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
    """Return the words of a text with single spaces between, or "" where none tell anything.

    Links, addresses, mentions, hashtags, digits, punctuation, emoji, kaomoji and laughter are left
    out, as are line breaks; `sooooo` becomes `so`.
    """
    said = prose(unicodedata.normalize("NFKC", EMOJI.sub(" ", text)))
    if alone := LONE_KANA.fullmatch(said):
        return alone[1]
    letters = WWW.sub(" ", SHORTCODE.sub(" ", said)).translate(_LETTERS).split()
    spoken = [ELONGATED.sub(r"\1", word) for word in letters if _is_spoken(word)]
    spoken = _without_limbs(spoken)
    if all(map(is_exclamation, spoken)) or _too_short(spoken):
        return ""
    return " ".join(spoken)


def _is_spoken(word: str) -> bool:
    """Return whether a word has letters, and is neither laughter nor letters again and again."""
    small = word.lower()
    letters = frozenset(small)
    of_two = len(small) >= LEAST_LAUGH and len(letters) <= 2 and not letters.isdisjoint(LAUGHING)
    return any(map(str.isalpha, word)) and not (
        of_two or any(pattern.fullmatch(small) for pattern in PATTERNS)
    )


def _without_limbs(spoken: list[str]) -> list[str]:
    """Return the words without those of single letters in a script that nothing else is written in.

    They are limbs of kaomoji, such as `(づ｡◕‿‿◕｡)づ`.
    """
    if all(map(str.isascii, spoken)):
        return spoken
    scripts = [[script(char) for char in word if char not in INSIDE_WORDS] for word in spoken]
    written = {one for each in scripts if not _is_limb(each) for one in each}.union(WORD_A_LETTER)
    return [word for word, each in zip(spoken, scripts, strict=True) if written.issuperset(each)]


def _is_limb(scripts: list[str]) -> bool:
    """Return whether no two letters side by side are of one script; 見て is a word all the same."""
    if len(scripts) > 1 and JAPANESE.issuperset(scripts):
        return False
    return all(one != following for one, following in pairwise(scripts))


def _too_short(spoken: list[str]) -> bool:
    letters = [
        char for word in spoken for char in word if char.isalpha() or script(char) in SYLLABIC
    ]
    scripts = set(map(script, letters))
    if not scripts.isdisjoint(WORD_A_LETTER):
        return False
    return len(letters) < (MIN_LETTERS if scripts.isdisjoint(SYLLABIC) else MIN_SYLLABIC)

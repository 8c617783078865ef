"""The port of language detectors, and the codes of languages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

_CODES = """
aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da
de dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz
ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln
lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi
pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti
tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""
ISO_639_1 = frozenset(_CODES.split())
# Old codes, the codes of Wikipedias, and members of a group that ISO 639-1 has one code for.
FOLDED = {
    "als": "de",
    "arz": "ar",
    "azb": "az",
    "ckb": "ku",
    "cmn": "zh",
    "fil": "tl",
    "in": "id",
    "iw": "he",
    "ji": "yi",
    "jw": "jv",
    "nb": "no",
    "nn": "no",
    "pnb": "pa",
    "wuu": "zh",
    "yue": "zh",
}


def folded(code: str) -> str:
    """Return a model's code in the way of ISO 639-1: without script and region, `zh` for `zh-Hant`.

    Both written forms of Norwegian are `no`: a comment rarely shows which it is.
    """
    bare = code.strip().lower().replace("_", "-").partition("-")[0]
    return FOLDED.get(bare, bare)


def iso_639_1(code: str) -> str | None:
    """Return the ISO 639-1 code that a model's code stands for, None if there is none."""
    found = folded(code)
    return found if found in ISO_639_1 else None


@dataclass(frozen=True, slots=True)
class Detection:
    """A language as ISO 639-1 code, and how sure the detector is of it, from 0 to 1.

    What a confidence is worth differs from detector to detector; `make bench` measures it.
    """

    language: str
    confidence: float

    @classmethod
    def of(cls, code: str, confidence: float) -> Detection | None:
        """Return what a model says in its own code; None for a language without ISO 639-1 code."""
        language = iso_639_1(code)
        return None if language is None else cls(language, min(max(confidence, 0.0), 1.0))

    def if_at_least(self, confidence: float) -> Detection | None:
        """Itself, or None when it is less sure than that."""
        return self if self.confidence >= confidence else None


class Detector(Protocol):
    """Finds the language of one short text. Several calls may run at once."""

    @property
    def name(self) -> str:
        """Which model answers; recorded with each result."""

    async def detect(self, text: str) -> Detection | None:
        """Return the language of the text; None where it has none, or none that is sure enough.

        A text without words never has one: emoji, links, mentions, digits, laughter.
        """

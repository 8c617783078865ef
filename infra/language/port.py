"""The port to whatever finds out in which language a comment is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from infra.language.codes import iso_639_1


@dataclass(frozen=True, slots=True)
class Detection:
    """A language as ISO 639-1 code, and how sure the detector is of it, from 0 to 1.

    What a confidence is worth differs from detector to detector; `make bench` measures it.
    """

    language: str
    confidence: float

    @classmethod
    def of(cls, code: str, confidence: float) -> Detection | None:
        """What a model says in its own code; None for a language without an ISO 639-1 code."""
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
        """The language of the text; None where it has none, or none that is sure enough.

        A text without words never has one: emoji, links, mentions, digits, laughter.
        """

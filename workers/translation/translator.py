"""Translates a comment through a language model, and checks that nothing was lost on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from infra.cancellation import together
from infra.language.codes import iso_639_1
from infra.llm import LanguageModel, LanguageModelError
from infra.metrics import counter
from workers.translation.kept import Lost, lost_in
from workers.translation.pieces import pieces
from workers.translation.prompt import PROMPT_VERSION, TranslatedComment, instructions, question

log = structlog.get_logger(__name__)

PURPOSE = "translate"
# Models write fifty to a hundred tokens a second: so much is answered within LLM_TIMEOUT_SECONDS.
PIECE_CHARACTERS = 1_500
# No script takes more tokens for what one character of another one says; the rest is the form.
TOKENS_PER_CHARACTER = 4
TOKENS_OF_FORM = 200
EMPTY = Lost("text", "a translation; there was none")

TRANSLATIONS_CHECKED = counter(
    "backlot_translations_checked",
    "Answers of translators, by whether what had to be kept was (kept, asked_again, not_kept).",
    ("outcome",),
)


class NotKept(LanguageModelError):
    """Two translations in a row lost what they had to keep; a third would as well."""

    outcome = "not_kept"


@dataclass(frozen=True)
class Translation:
    """A text in the target language.

    `source_language` is what the model found, ISO 639-1, None where it found none. When that is
    the target language, `text` is the comment unchanged.
    """

    text: str
    source_language: str | None
    model: str
    prompt_version: str


class Piece(NamedTuple):
    """A part of a comment, translated."""

    text: str
    language: str | None
    weight: int


class Translator:
    """Translates into `target`, an ISO 639-1 code."""

    def __init__(self, llm: LanguageModel, model: str, target: str) -> None:
        self._llm = llm
        self._model = model
        self._target = target
        self._instructions = instructions(target)

    async def translate(self, text: str, source: str | None) -> Translation:
        """The translation of a comment of any length; `source` is a guess of its language.

        Each piece of it takes one call, or two; they run at once. White space around it stays as
        it is. Raises LanguageModelError, NotKept among them.
        """
        parts = pieces(text, PIECE_CHARACTERS)
        # When one fails the others end: they would cost for nothing.
        done = await together(*(self._piece(part, source) for part in parts))
        language = self._language_of(done)
        whole = text if language == self._target else "".join(piece.text for piece in done)
        # Each piece is right by itself; a link that was cut in two may not be.
        if len(done) > 1 and (lost := lost_in(text, whole)):
            raise _not_kept(lost)
        return Translation(whole, language, self._model, PROMPT_VERSION)

    async def _piece(self, text: str, source: str | None) -> Piece:
        core = text.strip()
        if not core:
            return Piece(text, None, 0)
        answer = await self._ask(core, source)
        language = iso_639_1(answer.source_language)
        if language == self._target:
            return Piece(text, language, len(core))
        translated = text.replace(core, answer.translated_text.strip(), 1)
        return Piece(translated, language, len(core))

    async def _ask(self, text: str, source: str | None) -> TranslatedComment:
        """An answer that has kept everything, of the first call or of the second."""
        lost: list[Lost] = []
        for outcome in ("asked_again", "not_kept"):
            answer = await self._call(text, question(text, source, [each.what for each in lost]))
            lost = self._lost(text, answer)
            if not lost:
                TRANSLATIONS_CHECKED.labels("kept").inc()
                return answer
            TRANSLATIONS_CHECKED.labels(outcome).inc()
            log.info("translation_not_kept", kinds=_kinds(lost), outcome=outcome)
        raise _not_kept(lost)

    async def _call(self, text: str, user: str) -> TranslatedComment:
        parsed = await self._llm.parse(
            self._instructions,
            user,
            TranslatedComment,
            model=self._model,
            purpose=PURPOSE,
            max_output_tokens=TOKENS_OF_FORM + TOKENS_PER_CHARACTER * len(text),
        )
        return parsed.answer

    def _lost(self, text: str, answer: TranslatedComment) -> list[Lost]:
        if iso_639_1(answer.source_language) == self._target:
            # The text itself is used.
            return []
        if not answer.translated_text.strip():
            return [EMPTY]
        return lost_in(text, answer.translated_text.strip())

    def _language_of(self, done: Sequence[Piece]) -> str | None:
        """The language of most of the text; the target's only where there is no other one."""
        weights: Counter[str] = Counter()
        for piece in done:
            if piece.language is not None:
                weights[piece.language] += piece.weight
        others = Counter({each: weights[each] for each in weights if each != self._target})
        most = (others or weights).most_common(1)
        return most[0][0] if most else None


def _kinds(lost: Sequence[Lost]) -> str:
    return ", ".join(sorted({each.kind for each in lost}))


def _not_kept(lost: Sequence[Lost]) -> NotKept:
    # Only the kinds: what they are is a piece of the comment, and this is logged.
    return NotKept(f"The translation does not keep the comment's {_kinds(lost)}.")

"""Which detector this program has, from its settings."""

from __future__ import annotations

from infra.errors import OperatorError
from infra.language.llm import LlmDetector
from infra.language.port import Detector
from infra.language.text import TextDetector
from infra.llm import LanguageModel
from infra.settings.features import TranslationSettings


class NoDetector(OperatorError):
    """LANGUAGE_DETECTOR names one that cannot be had here."""


def make_detector(settings: TranslationSettings, llm: LanguageModel | None) -> Detector:
    """The configured one; loads nothing yet. Raises OperatorError when it lacks what it needs."""
    least = settings.min_confidence
    if settings.detector == "whisper":
        from infra.language.whisper import WhisperDetector

        return WhisperDetector(settings.whisper_model, least)
    if settings.detector == "llm":
        if llm is None:
            raise NoDetector(
                "LANGUAGE_DETECTOR=llm needs a language model: set OPENAI_API_KEY, or "
                "OPENAI_BASE_URL of a server that speaks its API, or LANGUAGE_DETECTOR=text."
            )
        return LlmDetector(llm, settings.model, least)
    return TextDetector(least)

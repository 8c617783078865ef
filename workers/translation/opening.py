"""Puts the translation of comments together from the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from redis.asyncio import Redis

from commands.bus import CommandBus
from infra.language import make_detector
from infra.llm import make_language_model
from infra.settings.adapters import LanguageModelSettings
from infra.settings.features import TranslationSettings
from workers.translation.cache import TranslationCache
from workers.translation.task import CommentTranslation
from workers.translation.translator import Translator

log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_translation(
    settings: TranslationSettings,
    llm_settings: LanguageModelSettings,
    bus: CommandBus,
    redis: Redis,
) -> AsyncIterator[CommentTranslation]:
    """Everything that one process needs to translate; raises OperatorError."""
    llm = make_language_model(llm_settings)
    ttl = settings.cache_ttl_seconds
    model, target = settings.model, settings.target_language
    if llm is None:
        log.info("translation_skipped", reason="neither OPENAI_API_KEY nor OPENAI_BASE_URL is set")
    try:
        yield CommentTranslation(
            bus=bus,
            detector=make_detector(settings, llm),
            translator=None if llm is None else Translator(llm, model, target),
            cache=TranslationCache(redis, ttl, model=model, target=target),
            target=target,
            target_confidence=settings.target_confidence,
        )
    finally:
        if llm is not None:
            await llm.aclose()

"""Puts the translation of comments together from the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from redis.asyncio import Redis

from commands.bus import CommandBus
from infra.language import make_detector
from infra.llm import make_language_model
from infra.settings import Settings
from workers.translation.cache import TranslationCache
from workers.translation.task import CommentTranslation
from workers.translation.translator import Translator

log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_translation(
    settings: Settings, bus: CommandBus, redis: Redis
) -> AsyncIterator[CommentTranslation]:
    """Everything that one process needs to translate; raises OperatorError."""
    llm = make_language_model(settings)
    ttl = settings.translation_cache_ttl_seconds
    model, target = settings.translation_model, settings.translation_target_language
    if llm is None:
        log.info("translation_skipped", reason="neither OPENAI_API_KEY nor OPENAI_BASE_URL is set")
    try:
        yield CommentTranslation(
            bus=bus,
            detector=make_detector(settings, llm),
            translator=None if llm is None else Translator(llm, model, target),
            cache=TranslationCache(redis, ttl, model=model, target=target),
            target=target,
            target_confidence=settings.language_target_confidence,
        )
    finally:
        if llm is not None:
            await llm.aclose()

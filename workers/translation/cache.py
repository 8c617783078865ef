"""Equal comments are translated once: across processes, and for a day.

A cached translation saves a call and nothing else: with Redis away, comments are translated
without it, and the worst that a lost lock does is a second call.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from typing import NamedTuple

from pydantic import TypeAdapter
from redis.asyncio import Redis

from infra.cache import RedisValues, SingleFlight
from infra.metrics import counter
from infra.redis import OptionalRedis
from infra.redlock import LocksUnavailable, LockTaken, make_redlock
from infra.settings.features import TranslationSettings
from workers.translation.translator import PROMPT_VERSION, Translation, missing

PREFIX = "comment:translation:"
# Not `<key>:lock`: the metrics of locks count by what stands before the last colon.
LOCK_PREFIX = "comment:translation:lock:"
FORM = TypeAdapter(Translation)
DEFAULT_MODEL = str(TranslationSettings.model_fields["model"].default)
DEFAULT_TARGET = str(TranslationSettings.model_fields["target_language"].default)

# How long a lock outlives a process that died; while the work goes on it is extended.
LOCK_SECONDS = 10.0
# Whoever waits for another process looks again after so long, then half as long again, at most:
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5

Make = Callable[[], Awaitable[Translation]]

TRANSLATION_CACHE_FAILURES = counter(
    "backlot_translation_cache_failures",
    "Times that the translation cache could not be asked, or held something unreadable.",
)
TRANSLATION_LOOKUPS = counter(
    "backlot_translation_lookups",
    "Translations asked for, by where they came from (cache, shared, made, failed).",
    ("outcome",),
)


class LookupResult(NamedTuple):
    """A translation, and where it comes from: `cache`, `made`, or `shared` with another caller."""

    translation: Translation
    source: str


class TranslationCache:
    """Translations by `model` into `target`, for `ttl` seconds; to be used from one event loop.

    The key is `comment:translation:` with the SHA-256 of the text, trimmed and in lower case; with
    another model or target than the default ones, `:model:target` follows. Texts that differ only
    in case share it, as long as the translation keeps what each has to keep (links, names …); one
    that it does not fit has a key of its own: the same, and `:` with the SHA-256 of its very text.
    """

    def __init__(
        self, redis: Redis, ttl: float, *, model: str = DEFAULT_MODEL, target: str = DEFAULT_TARGET
    ) -> None:
        failures = TRANSLATION_CACHE_FAILURES
        self._redis = OptionalRedis(redis, "translation_cache", failures)
        self._values: RedisValues[Translation] = RedisValues(
            self._redis, FORM, unreadable=failures, event="translation_cache_unreadable"
        )
        self._lifetime = timedelta(milliseconds=max(round(ttl * 1000), 1))
        self._locks = make_redlock(redis, ())
        self._flights: SingleFlight[LookupResult] = SingleFlight()
        self._target = target
        usual = (model, target) == (DEFAULT_MODEL, DEFAULT_TARGET)
        self._suffix = "" if usual else f":{model}:{target}"

    async def get(self, text: str) -> Translation | None:
        """Return the cached translation, if there is one that fits; never raises RedisError."""
        for key in self._keys(text):
            found = await self._load(key)
            if found is not None and (fitted := self._fitted(found, text)):
                return fitted
        return None

    async def put(self, text: str, translation: Translation) -> None:
        """Cache a translation of the text; never raises RedisError."""
        await self._store(self._keys(text)[0], translation)

    async def once(self, text: str, make: Make) -> Translation:
        """Return the cached translation, or what `make` makes: one call for all callers meanwhile.

        In this process a failure goes to all who wait for it; it is not cached, so whoever asks
        later tries again. Another process waits for the value, and takes over when the lock is
        gone. Never raises RedisError.
        """
        shared_key, own_key = self._keys(text)
        found = await self._join(shared_key, make)
        fitted = self._fitted(found.translation, text)
        if fitted is None:
            found = await self._join(own_key, make)
            # Where it does not fit even now, `make` does not look, and there is no better one.
            fitted = self._fitted(found.translation, text) or found.translation
        TRANSLATION_LOOKUPS.labels(found.source).inc()
        return fitted

    async def _join(self, key: str, make: Make) -> LookupResult:
        try:
            found, shared = await self._flights.join(key, lambda: self._find_or_make(key, make))
        except Exception:
            TRANSLATION_LOOKUPS.labels("failed").inc()
            raise
        return LookupResult(found.translation, "shared") if shared else found

    async def _find_or_make(self, key: str, make: Make) -> LookupResult:
        pause = FIRST_PAUSE
        while True:
            cached = await self._load(key)
            if cached is not None:
                return LookupResult(cached, "cache")
            async with AsyncExitStack() as stack:
                if await self._may_begin(stack, key):
                    return await self._make(key, make)
            # Random, or those who wait would all look at the same time.
            await asyncio.sleep(pause * (0.5 + random.random()))  # noqa: S311 - no secret
            pause = min(pause * 1.5, LONGEST_PAUSE)

    async def _may_begin(self, stack: AsyncExitStack, key: str) -> bool:
        """Whether this process holds the lock now, or there is no lock to be had."""
        if self._redis.away:
            return True
        lock = LOCK_PREFIX + _digest(key)
        try:
            await stack.enter_async_context(self._locks.hold(lock, LOCK_SECONDS))
        except LockTaken:
            return False
        except LocksUnavailable as error:
            self._redis.failed(error)
        return True

    async def _make(self, key: str, make: Make) -> LookupResult:
        # Somebody may have made it between our look and our lock.
        cached = await self._load(key)
        if cached is not None:
            return LookupResult(cached, "cache")
        made = await make()
        await self._store(key, made)
        return LookupResult(made, "made")

    async def _load(self, key: str) -> Translation | None:
        """Return the cached translation, if it was made with the present prompt."""
        found = await self._values.load(key)
        return found if found is not None and found.prompt_version == PROMPT_VERSION else None

    async def _store(self, key: str, translation: Translation) -> None:
        await self._values.store(key, translation, self._lifetime)

    def _keys(self, text: str) -> tuple[str, str]:
        """Where all texts of the same normal form look, and where only this one does."""
        core = text.strip()
        shared = f"{PREFIX}{_digest(core.lower())}{self._suffix}"
        return shared, f"{shared}:{_digest(core)}"

    def _fitted(self, found: Translation, text: str) -> Translation | None:
        """A translation of the same normal form for this very text, None if it lacks something."""
        if found.source_language == self._target:
            return replace(found, text=text)
        core, translated = text.strip(), found.text.strip()
        if missing(core, translated):
            return None
        return replace(found, text=text.replace(core, translated, 1))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

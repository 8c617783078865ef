"""What tests of the translation cache share: a provider without a network, and how to ask."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable

from redis.asyncio import Redis

from workers.translator import PROMPT_VERSION, Translation, TranslationCache

MODEL = "gpt-4o-mini"
TTL = 60.0


class Provider:
    """Makes translations after a moment, and counts how often it was asked for each text."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.asked: list[str] = []
        self.begun = asyncio.Event()
        self.seconds = seconds
        self.failure: Exception | None = None
        self.language = "es"

    def of(self, text: str) -> Callable[[], Awaitable[Translation]]:
        async def make() -> Translation:
            self.asked.append(text)
            self.begun.set()
            await asyncio.sleep(self.seconds)
            if self.failure is not None:
                raise self.failure
            core = text.strip()
            return Translation(
                text.replace(core, f"[en] {core}"), self.language, MODEL, PROMPT_VERSION
            )

        return make


def key_of(text: str) -> str:
    return f"comment:translation:{hashlib.sha256(text.strip().lower().encode()).hexdigest()}"


async def stored(client: Redis, key: str) -> dict[str, str]:
    value = await client.get(key)
    assert value is not None
    found: dict[str, str] = json.loads(value)
    return found


async def once(cache: TranslationCache, provider: Provider, text: str) -> str:
    return (await cache.once(text, provider.of(text))).text


async def cached(cache: TranslationCache, text: str) -> Translation | None:
    """What the cache holds for the text, if it fits."""
    found = [await cache._load(key) for key in cache._keys(text)]
    fitted = [cache._fitted(each, text) for each in found if each is not None]
    return next((each for each in fitted if each is not None), None)


async def put(cache: TranslationCache, text: str, translation: Translation) -> None:
    await cache._values.store(cache._keys(text)[0], translation, cache._lifetime)

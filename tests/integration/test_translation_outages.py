"""A translation cache whose Redis dies, hangs and comes back: the comments are translated."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from infra import metrics
from tests.integration.redis_servers import RedisServer, redis_servers
from tests.integration.translation_support import MODEL, TTL, Provider, cached, once, put
from workers.translator import PROMPT_VERSION, Translation, TranslationCache

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """One of this test's own, to be killed."""
    with redis_servers(1, tmp_path) as (running,):
        yield running


async def test_without_redis_everything_goes_on_and_is_told_once(server: RedisServer) -> None:
    client, provider = server.client(), Provider(0.05)
    cache = TranslationCache(client, TTL)
    await once(cache, provider, "before")
    server.kill()
    failures = metrics.value("backlot_translation_cache_failures_total")
    with capture_logs() as logs:
        texts = [f"comment {number % 50}" for number in range(1000)]
        answers = await asyncio.gather(*(once(cache, provider, text) for text in texts))
        assert await cached(cache, "before") is None
        await put(cache, "before", Translation("x", "es", MODEL, PROMPT_VERSION))
    assert answers == [f"[en] {text}" for text in texts]
    assert len(provider.asked) == 1 + 50, "this process still makes each once"
    assert metrics.value("backlot_translation_cache_failures_total") > failures
    warnings = [line["event"] for line in logs if line["log_level"] == "warning"]
    assert warnings == ["translation_cache_away"]
    await client.aclose()


@pytest.mark.redis_hangs
async def test_a_redis_that_hangs_costs_a_second_and_not_one_of_each_comment(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.cache.AWAY_SECONDS", 3600.0)
    client, provider = server.client(), Provider()
    cache = TranslationCache(client, TTL)
    await once(cache, provider, "before")
    failures = metrics.value("backlot_translation_cache_failures_total")
    server.pause()
    for number in range(20):
        assert await once(cache, provider, f"comment {number}")
    assert metrics.value("backlot_translation_cache_failures_total") == failures + 1
    server.resume()
    await client.aclose()


@pytest.mark.redis_hangs
async def test_a_redis_that_has_hung_is_asked_again(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.cache.AWAY_SECONDS", 0.5)
    client, provider = server.client(), Provider()
    cache = TranslationCache(client, TTL)
    await once(cache, provider, "before")
    server.pause()
    assert await once(cache, provider, "meanwhile")
    server.resume()
    await asyncio.sleep(0.6)
    with capture_logs() as logs:
        asked = len(provider.asked)
        await once(cache, provider, "before")
    assert len(provider.asked) == asked, "the cache is used again"
    assert [line["event"] for line in logs] == ["translation_cache_back"]
    await client.aclose()


@pytest.mark.redis_hangs
@pytest.mark.parametrize("absence", ["kill", "pause"])
async def test_redis_vanishes_while_some_make_and_others_wait(
    server: RedisServer, absence: str
) -> None:
    makers, waiters = server.client(), server.client()
    making, waiting = TranslationCache(makers, TTL), TranslationCache(waiters, TTL)
    provider = Provider(1.0)
    first = asyncio.create_task(once(making, provider, "hola"))
    await provider.begun.wait()
    others = [asyncio.create_task(once(waiting, provider, "hola")) for _ in range(100)]
    await asyncio.sleep(0.1)
    assert provider.asked == ["hola"]
    getattr(server, absence)()
    assert await asyncio.gather(first, *others) == 101 * ["[en] hola"]
    assert len(provider.asked) == 2, "one of the waiting process took over"
    await makers.aclose()
    await waiters.aclose()

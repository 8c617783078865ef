"""Equal comments are translated once, on a Redis inside the process and on a real one."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from fakeredis import FakeServer
from redis.asyncio import Redis
from structlog.testing import capture_logs

from infra import metrics
from infra.llm.errors import LanguageModelError, Throttled
from infra.redis import embedded_redis
from infra.redlock import Lease
from tests.integration.redis_servers import RedisServer, redis_servers
from tests.integration.translation_support import (
    MODEL,
    TTL,
    Provider,
    cached,
    key_of,
    once,
    put,
    stored,
)
from tests.support import DEADLINE_SECONDS
from workers.fidelity import Glossary
from workers.translator import LOCK_PREFIX, PROMPT_VERSION, Translation, TranslationCache

pytestmark = pytest.mark.anyio

Connect = Callable[[], Redis]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    with redis_servers(1, tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(params=["fake", "real"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    """Gives a new client of one Redis, as each process has its own; empty at first."""
    clients: list[Redis] = []
    fake = FakeServer(version=(7, 4))

    def made() -> Redis:
        if request.param == "fake":
            clients.append(embedded_redis(fake))
        else:
            clients.append(request.getfixturevalue("servers")[0].client())
        return clients[-1]

    await made().flushall()
    yield made
    for client in clients:
        await client.aclose()


async def test_a_translation_is_kept_for_so_long_under_the_documented_key(connect: Connect) -> None:
    client, provider = connect(), Provider()
    cache = TranslationCache(client, TTL)
    assert await once(cache, provider, "  Hola MUNDO\n") == "  [en] Hola MUNDO\n"
    key = key_of("hola mundo")
    assert [key.encode()] == await client.keys("*"), "the lock is released"
    assert await stored(client, key) == {
        "text": "  [en] Hola MUNDO\n",
        "source_language": "es",
        "model": MODEL,
        "prompt_version": PROMPT_VERSION,
    }
    assert 59_000 < await client.pttl(key) <= 60_000
    assert await once(cache, provider, "Hola MUNDO") == "[en] Hola MUNDO"
    assert len(provider.asked) == 1


async def test_another_model_or_target_has_keys_of_its_own(connect: Connect) -> None:
    client, provider = connect(), Provider()
    for model, target in (("llama3:8b", "en"), (MODEL, "de"), (MODEL, "en")):
        await once(TranslationCache(client, TTL, model=model, target=target), provider, "hola")
    key = key_of("hola")
    keys = {key, f"{key}:llama3:8b:en", f"{key}:{MODEL}:de"}
    assert set(await client.keys("*")) == {name.encode() for name in keys}
    assert len(provider.asked) == 3


async def test_another_glossary_has_keys_of_its_own(connect: Connect) -> None:
    client, provider = connect(), Provider()
    one, other = Glossary(["Backlot"]), Glossary(["Backlot", "Night Shift"])
    for glossary in (one, other, one):
        await once(TranslationCache(client, TTL, glossary=glossary), provider, "hola")
    names = {f"{key_of('hola')}:{MODEL}:en:{each.edition}" for each in (one, other)}
    assert set(await client.keys("*")) == {name.encode() for name in names}
    assert len(provider.asked) == 2


async def test_a_term_in_another_case_is_translated_anew(connect: Connect) -> None:
    provider, glossary = Provider(), Glossary(["Go"])
    cache = TranslationCache(connect(), TTL, glossary=glossary)
    assert await once(cache, provider, "mira go") == "[en] mira go"
    assert await once(cache, provider, "mira Go") == "[en] mira Go"
    assert provider.asked == ["mira go", "mira Go"]


async def test_a_thousand_equal_comments_are_one_call(connect: Connect) -> None:
    provider = Provider(0.3)
    caches = [TranslationCache(connect(), TTL) for _ in range(4)]
    texts = await asyncio.gather(
        *(once(cache, provider, "¡Qué bonito!") for cache in caches for _ in range(250))
    )
    assert set(texts) == {"[en] ¡Qué bonito!"}
    assert len(provider.asked) == 1


async def test_a_thousand_that_differ_in_case_and_names_are_a_call_per_text(
    connect: Connect,
) -> None:
    provider = Provider(0.1)
    caches = [TranslationCache(connect(), TTL) for _ in range(4)]
    texts = ["Hola", "HOLA", "hola @ann", "hola @Ann", "hola @ANN"]
    answers = await asyncio.gather(
        *(once(cache, provider, text) for cache in caches for text in texts for _ in range(50))
    )
    assert answers.count("[en] hola @Ann") == answers.count("[en] hola @ANN") == 200
    # "HOLA" is served by the translation of "Hola"; names have to be right to the letter.
    assert len(provider.asked) == 4
    assert len(set(provider.asked) & {"Hola", "HOLA"}) == 1
    for text in texts:
        await once(caches[0], provider, text)
    assert len(provider.asked) == 4, "each variant is cached beside the others"


async def test_a_text_in_the_target_language_is_returned_as_it_is_written(connect: Connect) -> None:
    cache, provider = TranslationCache(connect(), TTL), Provider()
    provider.language = "en"
    await cache.once("nice @ann", provider.of("nice @ann"))
    assert await once(cache, provider, "NICE @ANN") == "NICE @ANN"
    assert len(provider.asked) == 1


async def test_get_and_put(connect: Connect) -> None:
    cache = TranslationCache(connect(), TTL)
    made = Translation("look @ann", "es", MODEL, PROMPT_VERSION)
    assert await cached(cache, "mira @ann") is None
    await put(cache, "mira @ann", made)
    assert await cached(cache, "Mira @ann") == made
    assert await cached(cache, "mira @ANN") is None


async def test_what_an_older_prompt_made_is_made_anew(connect: Connect) -> None:
    cache, provider = TranslationCache(connect(), TTL), Provider()
    await put(cache, "hola", Translation("old", "es", MODEL, "comment-translation.v0"))
    assert await once(cache, provider, "hola") == "[en] hola"
    assert await cached(cache, "hola") is not None


@pytest.mark.parametrize("value", [b"", b"{", b'{"text": 1}', b"\xff"])
async def test_what_can_not_be_read_is_made_anew_and_told(connect: Connect, value: bytes) -> None:
    client, provider = connect(), Provider()
    await client.set(key_of("hola"), value)
    with capture_logs() as logs:
        assert await once(TranslationCache(client, TTL), provider, "hola") == "[en] hola"
    assert "translation_cache_unreadable" in [line["event"] for line in logs]
    assert (await stored(client, key_of("hola")))["text"] == "[en] hola"


async def test_a_failure_is_shared_and_not_kept(connect: Connect) -> None:
    cache, provider = TranslationCache(connect(), TTL), Provider(0.1)
    provider.failure = Throttled("later", 3.0)
    results = await asyncio.gather(
        *(once(cache, provider, "hola") for _ in range(1000)), return_exceptions=True
    )
    assert all(isinstance(result, LanguageModelError) for result in results)
    assert len(provider.asked) == 1, "a thousand failures are no thousand calls"
    provider.failure = None
    assert await once(cache, provider, "hola") == "[en] hola"


async def test_each_process_learns_of_a_failure_by_one_call_of_its_own(connect: Connect) -> None:
    provider = Provider(0.05)
    provider.failure = Throttled("later")
    caches = [TranslationCache(connect(), TTL) for _ in range(3)]
    results = await asyncio.gather(
        *(once(cache, provider, "hola") for cache in caches for _ in range(100)),
        return_exceptions=True,
    )
    assert all(isinstance(result, Throttled) for result in results)
    assert len(provider.asked) <= 3


async def test_where_a_translation_came_from_is_counted(connect: Connect) -> None:
    def counted() -> list[float]:
        outcomes = ("made", "shared", "cache", "failed")
        name = "backlot_translation_lookups_total"
        return [metrics.value(name, outcome=outcome) for outcome in outcomes]

    before = counted()
    cache, provider = TranslationCache(connect(), TTL), Provider(0.01)
    await asyncio.gather(*(once(cache, provider, "hola") for _ in range(5)))
    await once(cache, provider, "hola")
    provider.failure = Throttled("later")
    with pytest.raises(Throttled):
        await once(cache, provider, "adiós")
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 4, 1, 1]


async def test_a_process_that_died_is_waited_for_no_longer_than_its_lock(connect: Connect) -> None:
    client, provider = connect(), Provider()
    cache = TranslationCache(client, TTL)
    lock = LOCK_PREFIX + hashlib.sha256(key_of("hola").encode()).hexdigest()
    await client.set(lock, "a dead process", px=400)
    started = time.monotonic()
    assert await once(cache, provider, "hola") == "[en] hola"
    assert 0.3 < time.monotonic() - started < DEADLINE_SECONDS
    assert await client.get(lock) is None


async def test_what_came_between_the_look_and_the_lock_is_seen(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, rival, provider = TranslationCache(connect(), TTL), Provider(), Provider()
    another = TranslationCache(connect(), TTL)
    hold = cache._locks.hold

    @asynccontextmanager
    async def late(key: str, ttl: float) -> AsyncIterator[Lease]:
        await once(another, rival, "hola")
        async with hold(key, ttl) as lease:
            yield lease

    monkeypatch.setattr(cache._locks, "hold", late)
    assert await once(cache, provider, "hola") == "[en] hola"
    assert (rival.asked, provider.asked) == (["hola"], [])


async def test_a_caller_that_is_cancelled_leaves_no_lock(connect: Connect) -> None:
    client, provider = connect(), Provider(30)
    cache = TranslationCache(client, TTL)
    asking = asyncio.create_task(once(cache, provider, "hola"))
    await provider.begun.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert await client.keys("*") == []


async def test_no_lock_is_counted_under_a_name_of_its_own(connect: Connect) -> None:
    name = "backlot_lock_acquisitions_total"
    labels = {"lock": "comment:translation:lock", "outcome": "acquired"}
    before = metrics.value(name, **labels)
    cache = TranslationCache(connect(), TTL, model="llama3:8b")
    await once(cache, Provider(), "hola")
    assert metrics.value(name, **labels) == before + 1

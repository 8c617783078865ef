"""Comments through the whole pipeline with a provider that answers at once, and how soon one is."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
import psycopg
import uvloop
from eventsourcing.persistence import StoredEvent
from openai import AsyncOpenAI

from benchmarks.bench import Bench
from benchmarks.delays import percentiles
from benchmarks.log import MAPPER, ORIGIN, VIDEOS
from benchmarks.processes import Served, serving
from benchmarks.redis_server import redis_server
from benchmarks.results import Comparison, Side
from domain.comment import Comment
from infra.http.auth import mint_token
from infra.llm.client import make_language_model
from infra.settings import load_settings
from tests.openai_server import OpenAIServer, openai_server
from workers.translator import TranslatedComment, Translator

EMBEDDED, SHARED = "comments, all in one process", "comments, tasks in Redis"
CALLS = "only the translator's calls"
SOON, SDK = "post to translated, idle", "one call of the provider"
SECRET = secrets.token_urlsafe(32)
IN_FLIGHT = 8
MOST_SECONDS = 300.0
LOOK_SECONDS = 0.002
PAUSE_SECONDS = 0.1
LEFT = "SELECT count(*) FROM comments.comments WHERE translation_status <> 'translated'"
ALL = "SELECT count(*) FROM comments.comments"
STATUS = "SELECT translation_status FROM comments.comments WHERE comment_id = %s"


def text(number: int) -> str:
    """A Spanish comment that no other one equals."""
    return f"Qué bonito es este vídeo, muchas gracias a todos, capítulo {number}"


def posted(index: int) -> StoredEvent:
    """The index-th of ever more comments."""
    comment = Comment.blank(UUID(int=0xC0F << 96 | index))
    comment.post(VIDEOS[index % len(VIDEOS)], text(index), ORIGIN)
    (event,) = comment.collect_events()
    return MAPPER.to_stored_event(event)


def run(bench: Bench) -> list[Comparison]:
    """Rates in comments/s, delays in ms."""
    count, rounds = bench.size(300, 100), bench.size(3, 1)
    with openai_server() as provider, redis_server(bench.folder / "translating-redis") as redis:
        rates = bench.interleave(
            rounds,
            {
                EMBEDDED: lambda n: _pipeline(bench, provider, count, f"embedded-{n}"),
                SHARED: lambda n: _shared(bench, provider, count, n, redis),
                CALLS: lambda _: count / uvloop.run(_calls(provider, count)),
            },
        )
        soon, calls = _delays(bench, provider), uvloop.run(_one_by_one(provider, bench))
    sides = {name: Side(name, values) for name, values in rates.items()}
    return [
        Comparison("translating", "comments/s", sides[EMBEDDED], sides[CALLS]),
        Comparison("translating", "comments/s", sides[SHARED], sides[CALLS]),
        Comparison("translating", "ms", soon, calls),
    ]


def _pipeline(
    bench: Bench, provider: OpenAIServer, count: int, name: str, **settings: str
) -> float:
    """Comments/s from the start of a Backlot that finds them in its log, until all are read."""
    with _backlot(bench, provider, count, name, **settings) as (_, url):
        started = time.perf_counter()
        before = count - _left(url, count)
        while _left(url, count) > 0:
            if time.perf_counter() - started > MOST_SECONDS:
                raise TimeoutError(f"{_left(url, count)} of {count} comments are not translated.")
            time.sleep(0.01)
        return (count - before) / (time.perf_counter() - started)


def _shared(bench: Bench, provider: OpenAIServer, count: int, number: int, redis: str) -> float:
    """The same with a database of its own in Redis, where no text has been translated yet."""
    place = f"{redis.rpartition('/')[0]}/{number}"
    return _pipeline(bench, provider, count, f"shared-{number}", REDIS_URL=place)


def _left(url: str, count: int) -> int:
    with psycopg.connect(url) as conn:
        left, seen = (conn.execute(query).fetchone() for query in (LEFT, ALL))
    return count - int(seen[0]) + int(left[0]) if seen and left else count


@contextmanager
def _backlot(
    bench: Bench, provider: OpenAIServer, count: int, name: str, **more: str
) -> Iterator[tuple[Served, str]]:
    url = bench.log(count + 2 * len(VIDEOS), posted)
    settings = {
        "DATABASE_URL": url,
        "JWT_SECRET": SECRET,
        "BACKLOT_DATA_DIR": "data",
        "LOG_LEVEL": "warning",
        "OPENAI_BASE_URL": provider.url,
        "LLM_CALLS_PER_MINUTE": "1000000",
        "TASK_THREADS": str(IN_FLIGHT),
        **more,
    }
    with serving("server", bench.folder / name, health="/readyz", settings=settings) as served:
        yield served, url


async def _calls(provider: OpenAIServer, count: int) -> float:
    """Translate as many texts with the same number of calls at once; seconds."""
    numbers = iter(range(count))
    settings = load_settings({"OPENAI_BASE_URL": provider.url, "LLM_CALLS_PER_MINUTE": "1000000"})
    llm = make_language_model(settings.llm)
    if llm is None:
        raise RuntimeError("there is a provider")
    translator = Translator(llm, settings.translation.model, "en")

    async def work() -> None:
        for number in numbers:
            await translator.translate(text(number), "es")

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    await llm.aclose()
    return time.perf_counter() - started


def _delays(bench: Bench, provider: OpenAIServer) -> Side:
    """From sending a comment until its translation is in the read model, one after another."""
    delays: list[float] = []
    with (
        _backlot(bench, provider, 1, "idle") as (served, url),
        psycopg.connect(url, autocommit=True) as conn,
        httpx.Client(
            base_url=f"http://127.0.0.1:{served.port}",
            headers={"Authorization": f"Bearer {mint_token(SECRET, 'viewer')}"},
            trust_env=False,
        ) as client,
    ):
        for number in range(bench.size(50, 5)):
            started = time.perf_counter()
            body = {"content": f"{text(number)}, y otra vez"}
            answer = client.post(f"/videos/{VIDEOS[0]}/comments", json=body).raise_for_status()
            while conn.execute(STATUS, (answer.json()["commentId"],)).fetchone() != ("translated",):
                time.sleep(LOOK_SECONDS)
            delays.append((time.perf_counter() - started) * 1000)
            time.sleep(PAUSE_SECONDS)
    return Side(SOON, delays, percentiles(delays))


async def _one_by_one(provider: OpenAIServer, bench: Bench) -> Side:
    """What of it nobody can save: a bare call through the SDK."""
    delays: list[float] = []
    async with AsyncOpenAI(api_key="none", base_url=provider.url) as client:
        for number in range(bench.size(50, 5)):
            started = time.perf_counter()
            await client.chat.completions.parse(
                model="bare",
                messages=[{"role": "user", "content": text(number)}],
                response_format=TranslatedComment,
            )
            delays.append((time.perf_counter() - started) * 1000)
    return Side(SDK, delays, percentiles(delays))

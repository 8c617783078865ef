"""What `dramatiq tests.integration.toy_tasks` runs in tests: actors that tell what they do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dramatiq
from redis.asyncio import Redis

from infra.redis import connect_redis
from infra.settings import load_settings
from infra.tasks.middleware import Resources
from infra.tasks.queues import TRANSLATION, FailedTask, current_origin
from infra.tasks.worker import configure

TOLD = "told"
settings = load_settings()


@asynccontextmanager
async def _open() -> AsyncIterator[Redis]:
    assert settings.tasks.own_broker_url is not None
    client = connect_redis(settings.tasks.own_broker_url.get_secret_value())
    await client.rpush(TOLD, f"open {os.getpid()}")
    yield client
    await client.rpush(TOLD, f"close {os.getpid()}")
    await client.aclose()


async def _on_dead(failed: FailedTask) -> None:
    await resources.get().rpush(TOLD, f"dead {failed.actor} after {failed.attempts}")


async def tell(what: str) -> None:
    await resources.get().rpush(TOLD, f"{what} for {current_origin().correlation_id}")


async def linger(what: str, seconds: float) -> None:
    await resources.get().rpush(TOLD, f"begin {what}")
    await asyncio.sleep(seconds)
    await resources.get().rpush(TOLD, f"end {what}")


async def fail() -> None:
    raise ValueError("always")


resources = Resources(_open)
broker = configure(settings, on_dead=_on_dead, resources=resources)
for work in (tell, linger, fail):
    dramatiq.actor(broker=broker, queue_name=TRANSLATION)(work)

"""A process that runs tasks and nothing else: `dramatiq workers.app`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from engine.command_bus import CommandBus
from engine.event_store import open_recorder
from engine.installation import ENGINE, LOG, migrate
from engine.log import MAPPER
from engine.persons import Persons
from infra.errors import OperatorError
from infra.key_encryption import key_encryption_of
from infra.postgres.connection import Limits, open_connection
from infra.redis import open_redis
from infra.settings import Settings, load_settings
from infra.tasks.middleware import Resources
from infra.tasks.queues import FailedTask
from infra.tasks.worker import configure
from workers.recommendations import open_preparing
from workers.speech import media_urls, open_speech
from workers.tasks import TaskMeans, declare, give_up
from workers.translation import open_translation


def _read_settings() -> tuple[Settings, str]:
    """Return the settings, and the database's URL among them. Raise OperatorError."""
    settings = load_settings()
    if settings.database.url is None or settings.tasks.broker_url is None:
        raise OperatorError(
            "DATABASE_URL and REDIS_URL (or TASK_BROKER_URL): set them to what the other processes "
            "use; without servers, run `backlot up`, which runs the tasks too"
        )
    return settings, settings.database.url.get_secret_value()


try:
    settings, DATABASE_URL = _read_settings()
except OperatorError as wrong:
    # One line, where Dramatiq would show where in its code it imports this module.
    sys.exit(f"workers.app: {wrong}")


def _migrate() -> None:
    """Make the tables of the log where no other process has started yet."""
    with open_connection(DATABASE_URL, "installation") as conn:
        migrate(conn, ENGINE, LOG)


@asynccontextmanager
async def open_means() -> AsyncIterator[TaskMeans]:
    """Open what tasks work with, on their event loop, in each process after the fork."""
    await asyncio.to_thread(_migrate)
    persons = Persons(DATABASE_URL, key_encryption_of(settings.keys, settings.server.data_dir))
    await asyncio.to_thread(persons.open)
    MAPPER.ciphers = persons
    recorder = open_recorder(DATABASE_URL, limits=Limits.from_settings(settings.database))
    bus = CommandBus(recorder, retries=settings.commands.retries)
    redis = open_redis(settings.redis.url)
    try:
        with media_urls(settings.objects) as media_url:
            async with (
                open_translation(settings.translation, settings.llm, bus, redis) as translation,
                open_preparing(settings, DATABASE_URL, redis) as recommendations,
            ):
                yield TaskMeans(
                    translation, open_speech(settings.speech, bus, media_url), recommendations
                )
    finally:
        await bus.close()
        await redis.aclose()
        recorder.close()
        persons.close()


resources: Final = Resources(open_means)


async def _on_dead(failed: FailedTask) -> None:
    await give_up(resources.get(), failed)


broker: Final = configure(settings, on_dead=_on_dead, resources=resources)
tasks: Final = declare(broker, resources.get)

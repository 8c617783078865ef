"""What tests of the relay share: a running one, and all that has come to lie in the topics."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from engine.log import event_id
from engine.subscription import Notifications, Subscription
from infra.kafka import Reader, Record
from infra.settings.adapters import KafkaSettings
from projections.integration_events import TOPICS
from tests.integration.event_log import rows
from tests.support import DEADLINE_SECONDS, ended
from workers.relay import subscribe_relay


def make_relay(
    database_url: str, servers: str, notifications: Notifications, **options: Any
) -> Subscription[Any]:
    given: dict[str, Any] = {"batch_events": 50, "poll_seconds": 0.2, **options}
    return subscribe_relay(
        database_url,
        KafkaSettings(KAFKA_BOOTSTRAP_SERVERS=(servers,)),
        notifications=notifications,
        **given,
    )


@asynccontextmanager
async def relaying(database_url: str, servers: str, **options: Any) -> AsyncIterator[None]:
    """A relay as in a process of Backlot; ended as by a cancellation."""
    notifications = Notifications(database_url)
    relay = make_relay(database_url, servers, notifications, **options)
    tasks = [asyncio.create_task(notifications.run()), asyncio.create_task(relay.run())]
    try:
        yield
    finally:
        await ended(*tasks)


class Topics:
    """Everything that is published, read again and again from where it was read to."""

    def __init__(self, servers: str) -> None:
        self.records: list[Record] = []
        self._reader = Reader(KafkaSettings(KAFKA_BOOTSTRAP_SERVERS=(servers,)), TOPICS)

    async def __aenter__(self) -> Topics:
        await self._reader.start({})
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._reader.stop()

    async def until(self, count: int, seconds: float = DEADLINE_SECONDS) -> None:
        """Read until there are that many different messages."""
        async with asyncio.timeout(seconds):
            while len(set(self.ids)) < count:
                self.records += await self._reader.read(0.1, 1000)

    async def drain(self) -> None:
        """Read what there is."""
        while found := await self._reader.read(0.3, 1000):
            self.records += found

    @property
    def ids(self) -> list[str]:
        return [dict(record.headers)["ce_id"].decode() for record in self.records]

    def positions(self) -> dict[tuple[str, bytes | None], list[int]]:
        """The positions per topic and key, each where it came first."""
        found: dict[tuple[str, bytes | None], list[int]] = {}
        for record in self.records:
            position = int(dict(record.headers)["position"])
            known = found.setdefault((record.partition.topic, record.key), [])
            if position not in known:
                known.append(position)
        return found


def relayed(database_url: str) -> dict[str, int]:
    """How far each source is published."""
    return dict(
        rows(database_url, "SELECT source, position FROM backlot_checkpoints WHERE kind = 'relay'")
    )


def expected_ids(database_url: str, topics: Iterable[str]) -> set[str]:
    """The ids of the events of these stored topics."""
    query = "SELECT originator_id, originator_version FROM backlot_events WHERE topic = ANY (%s)"
    return {str(event_id(*row)) for row in rows(database_url, query, [list(topics)])}


async def _run(database_url: str, servers: str) -> None:
    async with relaying(database_url, servers):
        sys.stderr.write("ready\n")
        sys.stderr.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    # A process of its own, to be killed.
    asyncio.run(_run(*sys.argv[1:]))

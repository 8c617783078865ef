"""What tests of the sinks of the analytics share: running ones, and a recorded history."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

from engine.messages import MessageBatch, MessageSource, Sink
from engine.subscription import Notifications, Subscription
from engine.telemetry import Telemetry, TelemetryEvent
from infra.settings.adapters import KafkaSettings
from projections.analytics.rules import Rules
from projections.feeds import feeds
from tests.integration.analytics_support import REPEAT, RULES, Event, when
from tests.support import ended
from workers.analytics import Analytics, AnalyticsVideos, tell_nobody, uploads_feed
from workers.consumers import subscribe_sink
from workers.sources import KafkaSource, LogSource

DETAILS = ("sessionId", "seconds", "position", "channel")

SourceOf = Callable[[frozenset[str], asyncio.Event], MessageSource]


def from_log(topics: frozenset[str], wake: asyncio.Event) -> MessageSource:
    """The log itself, a few events at a time, so that many batches are cut."""
    return LogSource(feeds(topics, batch_events=20), wake=wake)


@asynccontextmanager
async def keeping(
    log_url: str,
    *,
    url: str | None = None,
    source_of: SourceOf = from_log,
    batch_events: int = 25,
    flush_seconds: float = 0.05,
    rules: Rules = RULES,
    counted: Callable[[], Awaitable[None]] = tell_nobody,
) -> AsyncIterator[None]:
    """Both sinks, as in a process of Backlot; ended as by a cancellation."""
    notifications = Notifications(log_url)
    analytics = Analytics(rules, counted=counted)
    known = AnalyticsVideos(rules)
    following = LogSource([uploads_feed(100)], wake=notifications.subscribe())

    def runner(sink: Sink, source: MessageSource) -> Subscription[MessageBatch]:
        return subscribe_sink(
            url or log_url,
            sink,
            source,
            log_url=log_url,
            batch_events=batch_events,
            flush_seconds=flush_seconds,
            poll_seconds=0.2,
            hurried=notifications.hurried(),
        )

    runners = [
        runner(analytics, source_of(analytics.topics, notifications.subscribe())),
        runner(known, following),
    ]
    jobs = [notifications.run(), *(each.run() for each in runners)]
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        yield
    finally:
        await ended(*tasks)


async def record(url: str, events: Sequence[Event]) -> None:
    """Take the views, reports and shares of a history into the telemetry, in that order."""
    telemetry = Telemetry(url, repeat=REPEAT)
    telemetry.open()
    for event in events:
        topic, id_, value = event
        details = {name: told for name, told in value.items() if name in DETAILS}
        video = UUID(value["videoId"])
        await telemetry.record(
            TelemetryEvent(id_, topic, video, value["userId"], when(event), details)
        )
    await telemetry.close()


def from_kafka(servers: str) -> SourceOf:
    """The topics of a cluster, also a few messages at a time."""
    options = KafkaSettings(KAFKA_BOOTSTRAP_SERVERS=(servers,))
    return lambda topics, wake: KafkaSource(topics, options, batch_messages=20)


async def _run(log_url: str, url: str, servers: str | None = None) -> None:
    source_of = from_log if servers is None else from_kafka(servers)
    async with keeping(log_url, url=url, source_of=source_of):
        sys.stderr.write("ready\n")
        sys.stderr.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    # A process of its own, to be killed.
    asyncio.run(_run(*sys.argv[1:]))

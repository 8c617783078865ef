"""What one process runs on, and how it makes the subscriptions of its consumers from that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from redis.asyncio import Redis

from engine.event_store import GroupCommitRecorder
from engine.messages import BEHIND_EVENTS, Consumer, MessageBatch, MessageSource, Sink
from engine.personal_data import PersonalPlace
from engine.persons import Persons
from engine.projection import ReadModels
from engine.projection_subscription import ProjectionHost
from engine.seals.proofs import Proofs
from engine.seals.sealer import Sealer
from engine.subscription import CHANNELS, EVENTS, Notifications, Subscription
from infra.http.auth import Authenticator
from infra.metrics import own_page
from infra.objects.port import ObjectStore
from infra.postgres.connection import SHORT_WORK, Limits
from infra.redlock import Redlock
from infra.settings import Settings
from projections.feeds import feeds
from projections.integration_events import TELEMETRY
from projections.like_counters import Counters
from workers.consumers import subscribe_consumer, subscribe_sink
from workers.sources import KafkaSource, LogSource

BATCH_EVENTS = 500


@dataclass(frozen=True)
class Parts:
    """The running parts of one process."""

    settings: Settings
    database_url: str
    analytics_url: str
    authenticator: Authenticator
    objects: ObjectStore
    recorder: GroupCommitRecorder
    persons: Persons
    models: ReadModels
    notifications: Notifications
    host: ProjectionHost | None
    redis: Redis
    locks: Redlock
    # Without a Redis that the processes share, counts come from the read model.
    counters: Counters | None
    # What must end before the server waits for its last answers: streams without an end.
    endings: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    # What is closed once nothing uses it any more.
    closings: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    # Where features hold something about persons.
    places: Sequence[PersonalPlace] = ()
    sealer: Sealer | None = None
    proofs: Proofs = field(default_factory=Proofs)
    limits: Limits = SHORT_WORK
    # This installation's, which local tokens are signed with.
    secret: str = ""
    # What `/metrics` answers.
    page: Callable[[], Awaitable[bytes]] = own_page

    def consume(self, consumer: Consumer) -> Subscription[MessageBatch]:
        """Return the subscription of a consumer to its topics."""
        source = self._source(consumer, BATCH_EVENTS)
        poll_seconds = self.settings.projections.poll_seconds
        return subscribe_consumer(self.database_url, consumer, source, poll_seconds=poll_seconds)

    def feed(self, sink: Sink, source: MessageSource | None = None) -> Subscription[MessageBatch]:
        """Return the subscription of a sink to its topics, or to a source of its own."""
        settings = self.settings
        return subscribe_sink(
            self.analytics_url,
            sink,
            source or self._source(sink, BEHIND_EVENTS),
            log_url=self.database_url,
            batch_events=settings.analytics.batch_events,
            flush_seconds=settings.analytics.flush_seconds,
            poll_seconds=settings.projections.poll_seconds,
            hurried=self.notifications.hurried(),
        )

    def _source(self, consumer: Consumer | Sink, at_once: int) -> MessageSource:
        """Return Kafka where it is configured, else the event log itself."""
        kafka = self.settings.kafka
        if kafka.configured:
            hurried = self.notifications.hurried()
            return KafkaSource(consumer.topics, kafka, batch_messages=at_once, hurried=hurried)
        channels = CHANNELS if TELEMETRY.intersection(consumer.topics) else (EVENTS,)
        wake = self.notifications.subscribe(*channels)
        return LogSource(feeds(consumer.topics, batch_events=at_once), wake=wake)

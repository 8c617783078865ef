"""Webhooks: where published events are sent to; one stream for all, which their sender follows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from domain.errors import Conflict, Invalid, NotFound
from domain.model import Aggregate, Origin

STREAM_ID = UUID("3c1f8a52-6d0e-5b7a-8f43-2a9d5e7c1b60")
"""The stream of all webhooks."""
MOST_WEBHOOKS = 50
MAX_URL = 2_000
MOST_TOPICS = 100
MOST_SECRETS = 4
"""So many secrets of one webhook sign at a time."""
MAX_OVERLAP = timedelta(days=30)


class DisabledBecause(StrEnum):
    """Why nothing is sent to a webhook: somebody said so, its server did, or it failed for days."""

    ASKED = "asked"
    GONE = "gone"
    FAILING = "failing"


@dataclass(frozen=True, slots=True)
class Secret:
    """What signs, by the id from which the secret is derived; None: until it is rotated."""

    id: UUID
    ends_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Webhook:
    """One webhook. The first of the secrets is the newest; `disabled` says why, None: it is on."""

    id: UUID
    url: str
    topics: frozenset[str]
    secrets: tuple[Secret, ...]
    made_at: datetime
    disabled: DisabledBecause | None = None

    def signing(self, now: datetime) -> list[Secret]:
        """Return the secrets that sign at a time, the newest first."""
        return [each for each in self.secrets if each.ends_at is None or each.ends_at > now]


class Webhooks(Aggregate):
    """All webhooks, and what operators want of single deliveries; no event holds a secret."""

    TOPIC = "webhooks"

    class Event(Aggregate.Event):
        webhook_id: UUID

    class Added(Event):
        """The first deliveries are of what lies behind `after` (log, telemetry); null: this event.

        `secret_id` is what the secret is derived from.
        """

        TOPIC = "webhooks.added.v1"
        url: str
        topics: list[str]
        secret_id: UUID
        after: list[int] | None

        def apply(self, webhooks: Webhooks) -> None:
            secrets = (Secret(self.secret_id),)
            webhooks.by_id[self.webhook_id] = Webhook(
                self.webhook_id, self.url, frozenset(self.topics), secrets, self.timestamp
            )

    class Changed(Event):
        TOPIC = "webhooks.changed.v1"
        url: str
        topics: list[str]

        def apply(self, webhooks: Webhooks) -> None:
            webhooks.alter(self.webhook_id, url=self.url, topics=frozenset(self.topics))

    class SecretRotated(Event):
        """The secrets before go on to sign for `overlap_seconds`."""

        TOPIC = "webhooks.secret_rotated.v1"
        secret_id: UUID
        overlap_seconds: int

        def apply(self, webhooks: Webhooks) -> None:
            ends_at = self.timestamp + timedelta(seconds=self.overlap_seconds)
            before = webhooks.by_id[self.webhook_id].signing(self.timestamp)
            former = [Secret(each.id, min(each.ends_at or ends_at, ends_at)) for each in before]
            secrets = (Secret(self.secret_id), *former)[:MOST_SECRETS]
            webhooks.alter(self.webhook_id, secrets=secrets)

    class Disabled(Event):
        """`reason` is one of DisabledBecause."""

        TOPIC = "webhooks.disabled.v1"
        reason: str

        def apply(self, webhooks: Webhooks) -> None:
            webhooks.alter(self.webhook_id, disabled=DisabledBecause(self.reason))

    class Enabled(Event):
        """What waits is due at once, from where it stood."""

        TOPIC = "webhooks.enabled.v1"

        def apply(self, webhooks: Webhooks) -> None:
            webhooks.alter(self.webhook_id, disabled=None)

    class Removed(Event):
        TOPIC = "webhooks.removed.v1"

        def apply(self, webhooks: Webhooks) -> None:
            del webhooks.by_id[self.webhook_id]

    class TestRequested(Event):
        """A message that says nothing is to be sent, under this id."""

        TOPIC = "webhooks.test_requested.v1"
        message_id: UUID

        def apply(self, webhooks: Webhooks) -> None:
            """It changes nothing here."""

    class DeliveryRepeated(Event):
        """A delivery is to be made once more, behind all that waits."""

        TOPIC = "webhooks.delivery_repeated.v1"
        delivery_id: int

        def apply(self, webhooks: Webhooks) -> None:
            """It changes nothing here."""

    class DeliverySkipped(Event):
        """A delivery that waits is given up, so that what waits behind it goes on."""

        TOPIC = "webhooks.delivery_skipped.v1"
        delivery_id: int

        def apply(self, webhooks: Webhooks) -> None:
            """It changes nothing here."""

    def __init__(self) -> None:
        self.by_id: dict[UUID, Webhook] = {}

    def alter(self, webhook_id: UUID, **changes: object) -> None:
        """Let what was recorded hold."""
        self.by_id[webhook_id] = replace(self.by_id[webhook_id], **changes)  # type: ignore[arg-type]

    def get(self, webhook_id: UUID) -> Webhook:
        """Return a webhook; raise NotFound."""
        if webhook_id not in self.by_id:
            raise NotFound("There is no such webhook.")
        return self.by_id[webhook_id]

    def add(
        self,
        webhook_id: UUID,
        url: str,
        topics: frozenset[str],
        secret_id: UUID,
        after: tuple[int, int] | None,
        origin: Origin,
    ) -> Webhook:
        """Send to a URL from now on; the same id again records nothing. Raise Invalid, Conflict."""
        if webhook_id in self.by_id:
            return self.by_id[webhook_id]
        if len(self.by_id) >= MOST_WEBHOOKS:
            raise Conflict(f"There are {MOST_WEBHOOKS} webhooks already: remove one first.")
        _check(url, topics)
        self.record(
            self.Added,
            origin,
            webhook_id=webhook_id,
            url=url,
            topics=sorted(topics),
            secret_id=secret_id,
            after=None if after is None else list(after),
        )
        return self.by_id[webhook_id]

    def change(
        self, webhook_id: UUID, url: str | None, topics: frozenset[str] | None, origin: Origin
    ) -> Webhook:
        """Send to another URL, or other topics; what is so already records nothing.

        Raise NotFound, Invalid.
        """
        before = self.get(webhook_id)
        url = before.url if url is None else url
        topics = before.topics if topics is None else topics
        _check(url, topics)
        if (url, topics) != (before.url, before.topics):
            fields = {"url": url, "topics": sorted(topics)}
            self.record(self.Changed, origin, webhook_id=webhook_id, **fields)
        return self.by_id[webhook_id]

    def rotate(
        self, webhook_id: UUID, secret_id: UUID, overlap: timedelta, origin: Origin
    ) -> Webhook:
        """Sign by a new secret, and beside it by those before until the overlap is over.

        The same id again records nothing. Raise NotFound, Invalid.
        """
        before = self.get(webhook_id)
        if not timedelta() <= overlap <= MAX_OVERLAP:
            most = int(MAX_OVERLAP.total_seconds())
            raise Invalid(f"`overlapSeconds` is from 0 to {most}.", field="overlapSeconds")
        if secret_id not in {each.id for each in before.secrets}:
            seconds = int(overlap.total_seconds())
            fields = {"secret_id": secret_id, "overlap_seconds": seconds}
            self.record(self.SecretRotated, origin, webhook_id=webhook_id, **fields)
        return self.by_id[webhook_id]

    def disable(self, webhook_id: UUID, reason: DisabledBecause, origin: Origin) -> Webhook:
        """Send nothing until it is enabled; what is so already records nothing. Raise NotFound."""
        if self.get(webhook_id).disabled is None:
            self.record(self.Disabled, origin, webhook_id=webhook_id, reason=str(reason))
        return self.by_id[webhook_id]

    def enable(self, webhook_id: UUID, origin: Origin) -> Webhook:
        """Go on where it stood, at once also with what waits to be tried again. Raise NotFound."""
        self.get(webhook_id)
        self.record(self.Enabled, origin, webhook_id=webhook_id)
        return self.by_id[webhook_id]

    def remove(self, webhook_id: UUID, origin: Origin) -> None:
        """Send nothing more, and keep nothing of it; raise NotFound."""
        self.get(webhook_id)
        self.record(self.Removed, origin, webhook_id=webhook_id)

    def test(self, webhook_id: UUID, message_id: UUID, origin: Origin) -> None:
        """Have a message sent that says nothing; raise NotFound."""
        self.get(webhook_id)
        self.record(self.TestRequested, origin, webhook_id=webhook_id, message_id=message_id)

    def repeat(
        self, webhook_id: UUID, delivery_id: int, waits: bool | None, origin: Origin
    ) -> None:
        """Have a delivery made again that waits no more; `waits` is None where there is none.

        Raise NotFound, Conflict.
        """
        self._require_delivery(webhook_id, waits)
        if waits:
            raise Conflict("This delivery waits: it is tried anyway.")
        self.record(self.DeliveryRepeated, origin, webhook_id=webhook_id, delivery_id=delivery_id)

    def skip(self, webhook_id: UUID, delivery_id: int, waits: bool | None, origin: Origin) -> None:
        """Give a delivery up that waits; `waits` is None where there is none.

        Raise NotFound, Conflict.
        """
        self._require_delivery(webhook_id, waits)
        if not waits:
            raise Conflict("This delivery waits no more.")
        self.record(self.DeliverySkipped, origin, webhook_id=webhook_id, delivery_id=delivery_id)

    def _require_delivery(self, webhook_id: UUID, waits: bool | None) -> None:
        self.get(webhook_id)
        if waits is None:
            raise NotFound("There is no such delivery of this webhook.")


def _check(url: str, topics: frozenset[str]) -> None:
    """Raise Invalid for what can't be kept; whom one may call is not known here."""
    if not 1 <= len(url) <= MAX_URL or not (url.isascii() and url.isprintable()) or " " in url:
        told = f"`url` has at most {MAX_URL} characters, of ASCII that can be seen."
        raise Invalid(told, field="url")
    if not 1 <= len(topics) <= MOST_TOPICS:
        raise Invalid(f"`topics` are 1 to {MOST_TOPICS}.", field="topics")

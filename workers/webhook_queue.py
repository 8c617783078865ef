"""What waits for one webhook, in order per key, and how it is read from where it was recorded."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from heapq import heappop, heappush
from uuid import UUID

import orjson
from psycopg import Connection
from psycopg.rows import TupleRow

from domain.webhooks import Webhook
from infra.http.shapes import rfc3339
from projections.feeds import feeds
from projections.integration_events import Message
from projections.webhooks import TEST, Attempt, DeliveryStatus, WaitingDelivery

SOURCE = b"/backlot/webhooks"


@dataclass
class DeliveryQueue:
    """What waits for one webhook, by key; `places` is how far its feeds were read."""

    webhook: Webhook
    places: dict[str, int]
    running: dict[bytes, int] = field(default_factory=dict)
    count: int = 0
    last: int = 0
    moved: float = field(default_factory=time.monotonic)
    stored: dict[str, int] = field(default_factory=dict)
    _lines: dict[bytes, deque[WaitingDelivery]] = field(default_factory=dict)
    _due: list[tuple[datetime, int, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stored = dict(self.places)

    def add(self, rows: Iterable[WaitingDelivery]) -> None:
        """Put deliveries behind those of their keys."""
        for row in rows:
            line = self._lines.setdefault(row.key, deque())
            line.append(row)
            self.count += 1
            self.last = max(self.last, row.delivery_id)
            if len(line) == 1 and row.key not in self.running:
                self._push(row)

    def take(self, now: datetime) -> WaitingDelivery | None:
        """Return a delivery that is due, whose key counts as under way until it is settled."""
        if not self._due or self._due[0][0] > now:
            return None
        key = heappop(self._due)[2]
        head = self._lines[key][0]
        self.running[key] = head.delivery_id
        return head

    def settle(self, taken: WaitingDelivery, attempt: Attempt | None) -> None:
        """Let the key go on: behind this delivery, or with it when it is due again.

        Without an attempt it is due as it was.
        """
        self.running.pop(taken.key, None)
        line = self._lines.get(taken.key)
        if not line:
            return
        # Where somebody has skipped it meanwhile, another one is the first.
        if attempt is not None and line[0].delivery_id == taken.delivery_id:
            if attempt.status is DeliveryStatus.WAITING:
                line[0] = replace(taken, attempts=attempt.attempts, due_at=attempt.due_at)
            else:
                line.popleft()
                self.count -= 1
        if line:
            self._push(line[0])
        else:
            del self._lines[taken.key]

    def next_due(self) -> datetime | None:
        """Return when the next delivery is due that is not under way."""
        return self._due[0][0] if self._due else None

    def oldest(self) -> datetime | None:
        """Return when the oldest of what waits was recorded."""
        return min((line[0].recorded_at for line in self._lines.values()), default=None)

    def _push(self, head: WaitingDelivery) -> None:
        heappush(self._due, (head.due_at, head.delivery_id, head.key))


def read_message(
    conn: Connection[TupleRow], webhook_id: UUID, row: WaitingDelivery
) -> tuple[Message | None, str]:
    """Return what is to be delivered, from where it was recorded; else None, and why."""
    if row.feed == TEST:
        return _test_message(webhook_id, row), ""
    for feed in feeds((row.topic,), batch_events=1):
        stretch = feed.read(conn, row.position - 1)
        for message in stretch.messages:
            if message.position == row.position:
                return message, ""
        for each in stretch.unreadable:
            if each.position == row.position:
                return None, each.error
    return None, "It is not there any more."


def _test_message(webhook_id: UUID, row: WaitingDelivery) -> Message:
    value = {"id": row.message_id, "webhookId": webhook_id, "ts": rfc3339(row.recorded_at)}
    return Message(
        row.topic,
        row.message_id,
        str(webhook_id),
        orjson.dumps(value),
        0,
        row.recorded_at,
        SOURCE,
        None,
    )

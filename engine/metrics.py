"""What the subscriptions of every feature measure."""

from __future__ import annotations

from infra.metrics import counter, gauge

CONSUMED = counter(
    "backlot_consumer_messages",
    "Messages that a consumer has handled, by topic.",
    ("consumer", "topic"),
)
CONSUMER_LAG = gauge(
    "backlot_consumer_lag_messages",
    "Positions of the log (with Kafka: messages) between its end and the consumer.",
    ("consumer",),
)
CONSUMER_LAG_SECONDS = gauge(
    "backlot_consumer_lag_seconds",
    "Age of the oldest message that the consumer is at; 0 when it is caught up.",
    ("consumer",),
)
CONSUMER_FAILURES = counter(
    "backlot_consumer_failures",
    "Times that a consumer could not go on, and tried again later (source, handler).",
    ("consumer", "step"),
)
CONSUMER_DIED = counter(
    "backlot_consumer_died",
    "Messages that a consumer could not read or handle, and set aside.",
    ("consumer", "topic"),
)
CONSUMER_DEAD = gauge(
    "backlot_consumer_dead",
    "Messages of the consumer that are set aside.",
    ("consumer",),
)

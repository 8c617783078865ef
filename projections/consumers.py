"""How far the consumers are that keep what queries are made from, by their names."""

from __future__ import annotations

COUNTS, VIDEOS, ENGAGED = "analytics", "analytics_videos", "recommendations"

# With Kafka a consumer's places are offsets. Beside them it keeps, under these names, up to which
# position of the log or of the telemetry it has everything.
BY_KAFKA = {"events": "kafka:events", "telemetry": "kafka:telemetry"}

REACHED = b"""
SELECT subscription,
       coalesce(max(position) FILTER (WHERE source IN ('events', 'kafka:events')), 0),
       coalesce(max(position) FILTER (WHERE source IN ('telemetry', 'kafka:telemetry')), 0),
       NULL::int
FROM backlot_checkpoints WHERE kind = 'consumer' GROUP BY subscription
"""

"""The main database as the release before the migrations left it, with rows in every table."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import psycopg

TABLES_BEFORE = Path(__file__).with_name("tables_before_migrations.sql").read_bytes()
MESSAGE = UUID(int=0xDEAD)

ROWS = f"""
INSERT INTO projections.state
    (schema, name, version, position, status, error, error_position, updated_at, accounted_after)
VALUES ('likes', 'likes', 2, 40, 'running', NULL, NULL, '2026-01-01Z', 7),
       ('likes__next', 'likes', 3, 0, 'running', NULL, NULL, '2026-01-02Z', 0),
       ('catalog', 'catalog', 1, 11, 'stopped', 'ValueError: twelve', 12, '2026-01-03Z', 0);
INSERT INTO projections.parked
    (schema, position, projection, error, attempts, parked_at, status, decided_by, decided_at,
     reason)
VALUES ('likes', 3, 'likes', 'ValueError: three', 2, '2026-01-01Z', 'parked', NULL, NULL, NULL),
       ('likes', 5, 'likes', 'ValueError: five', 1, '2026-01-02Z', 'discarded', 'root',
        '2026-01-05Z', 'a test account');
INSERT INTO projections.park_orders (projection, topic, fault, until, given_by, reason)
VALUES ('likes', 'video_likes.liked.v1', 'ValueError', 40, 'root', 'known');
INSERT INTO projections.ledger VALUES ('likes', 0, 38, 800);
INSERT INTO projections.replays
    (id, name, version, schema, purpose, workers, state, confirmed, requested_by, operation_id,
     finished_at)
VALUES (1, 'likes', 3, 'likes__next', 'switch', 2, 'building', true, 'root', gen_random_uuid(),
        NULL),
       (2, 'catalog', 1, 'catalog__verify_2', 'verify', 2, 'cancelled', true, 'root',
        gen_random_uuid(), now());
INSERT INTO projections.replay_partitions
VALUES (1, 0, 20, 40), (1, 1, 10, 40), (2, 0, 5, 11);
INSERT INTO backlot_consumer_places
VALUES ('translation', 'events', 0, 39, '2026-01-04Z'),
       ('analytics', 'comment.created', 1, 17, '2026-01-05Z');
INSERT INTO processed_messages (consumer, message_id) VALUES ('translation', gen_random_uuid());
INSERT INTO backlot_dead_messages
    (consumer, topic, source, partition, position, message_id, key, value, headers, reason,
     attempts, status, died_at)
VALUES ('translation', 'comment.created', 'events', 0, 9, '{MESSAGE}', 'key', '\\x00ff',
        '{{"ce_id": "9"}}', 'it can''t be handled', 3, 'redrive', '2026-01-06Z'),
       ('translation', 'comment.edited', 'events', 0, 12, NULL, NULL, NULL,
        '{{}}', 'unreadable', 1, 'dead', '2026-01-07Z');
INSERT INTO backlot_relay VALUES ('events', 38, '2026-01-08Z'), ('telemetry', 4, '2026-01-09Z');
INSERT INTO backlot_undelivered
VALUES ('events', 21, 'comment.created', 'too large', '{MESSAGE}', 'key', '\\x01', '2026-01-10Z');
INSERT INTO backlot_events
VALUES (gen_random_uuid(), 1, 'video_likes.liked.v1', '{{}}', 1);
INSERT INTO backlot_events_answers VALUES ('ann', 'key', '\\x01', 200, '{{}}', 1);
INSERT INTO backlot_seals VALUES (1, 1, 1, '\\x01', '\\x02', '\\x03');
INSERT INTO backlot_verifications (complete, ok, report) VALUES (true, true, '{{}}');
INSERT INTO backlot_telemetry (event_id, topic, video_id, happened_at, details)
VALUES (gen_random_uuid(), 'video.shared', gen_random_uuid(), now(), '{{}}');
INSERT INTO backlot_views VALUES (gen_random_uuid(), 3);
INSERT INTO backlot_view_sessions VALUES (gen_random_uuid(), 'viewer', 'session', now());
INSERT INTO backlot_viewer_salts VALUES ('2026-01-01', '\\x01');
INSERT INTO projections.like_drift
    (video_id, counter, counter_position, likes, position, repaired)
VALUES (gen_random_uuid(), 2, 40, 3, 40, true)
"""


def leave_behind(database_url: str) -> None:
    """Make the database of the former release."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(TABLES_BEFORE)
        conn.execute(ROWS.encode())

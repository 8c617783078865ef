-- The tables of the main database as the releases before the migrations made them (up to d93a9aa).

CREATE TABLE IF NOT EXISTS public.backlot_events (
    originator_id uuid NOT NULL,
    originator_version bigint NOT NULL,
    topic text,
    state bytea,
    notification_id bigint NOT NULL,
    PRIMARY KEY (originator_id, originator_version))
WITH (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02);

CREATE TABLE IF NOT EXISTS public.backlot_events_answers (
    actor text NOT NULL,
    key text NOT NULL,
    request_hash bytea NOT NULL,
    status int NOT NULL,
    body bytea NOT NULL,
    position bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (actor, key));

CREATE UNIQUE INDEX IF NOT EXISTS backlot_events_notification_id_idx ON public.backlot_events (notification_id ASC);

CREATE OR REPLACE FUNCTION public.backlot_events_append_rest(head bigint, 
    saves int[], ids uuid[], versions bigint[], topics text[], states bytea[],
    key_saves int[], actors text[], keys text[], hashes bytea[], statuses int[], bodies bytea[])
RETURNS int[]
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $body$
DECLARE
    conflicts int[];
BEGIN
    SELECT coalesce(array_agg(DISTINCT save), '{}') INTO conflicts FROM (
        SELECT e.save FROM unnest(saves, ids, versions) AS e(save, id, version)
        WHERE EXISTS (SELECT FROM public.backlot_events t
                      WHERE t.originator_id = e.id AND t.originator_version = e.version)
        UNION ALL
        SELECT k.save FROM unnest(key_saves, actors, keys) AS k(save, actor, key)
        WHERE EXISTS (SELECT FROM public.backlot_events_answers a
                      WHERE a.actor = k.actor AND a.key = k.key)) AS refused;
    INSERT INTO public.backlot_events
        (originator_id, originator_version, topic, state, notification_id)
    SELECT id, version, topic, state, head + row_number() OVER (ORDER BY place)
    FROM unnest(saves, ids, versions, topics, states)
        WITH ORDINALITY AS e(save, id, version, topic, state, place)
    WHERE save <> ALL (conflicts);
    INSERT INTO public.backlot_events_answers (actor, key, request_hash, status, body, position)
    SELECT actor, key, hash, status, body,
           head + (SELECT count(*) FROM unnest(saves) AS s(save)
                   WHERE s.save <= k.save AND s.save <> ALL (conflicts))
    FROM unnest(key_saves, actors, keys, hashes, statuses, bodies)
        AS k(save, actor, key, hash, status, body)
    WHERE save <> ALL (conflicts);
    RETURN conflicts;
END
$body$;

CREATE OR REPLACE FUNCTION public.backlot_events_append(
    saves int[], ids uuid[], versions bigint[], topics text[], states bytea[],
    key_saves int[], actors text[], keys text[], hashes bytea[], statuses int[], bodies bytea[],
    OUT head bigint, OUT conflicts int[])
LANGUAGE plpgsql AS $body$
BEGIN
    PERFORM pg_advisory_xact_lock(7106407, 'public.backlot_events'::regclass::oid::int);
    SELECT coalesce(max(notification_id), 0) INTO head FROM public.backlot_events;
    conflicts := '{}';
    BEGIN
        INSERT INTO public.backlot_events
            (originator_id, originator_version, topic, state, notification_id)
        SELECT id, version, topic, state, head + place
        FROM unnest(ids, versions, topics, states)
            WITH ORDINALITY AS e(id, version, topic, state, place);
        IF cardinality(keys) > 0 THEN
            INSERT INTO public.backlot_events_answers (actor, key, request_hash, status, body, position)
            SELECT actor, key, hash, status, body,
                   head + (SELECT count(*) FROM unnest(saves) AS s(save) WHERE s.save <= k.save)
            FROM unnest(key_saves, actors, keys, hashes, statuses, bodies)
                AS k(save, actor, key, hash, status, body);
        END IF;
    EXCEPTION WHEN unique_violation THEN
        conflicts := public.backlot_events_append_rest(head, saves, ids, versions, topics, states,
            key_saves, actors, keys, hashes, statuses, bodies);
    END;
    PERFORM pg_notify('backlot_events', '');
END
$body$;

CREATE TABLE IF NOT EXISTS backlot_telemetry (
        event_id uuid PRIMARY KEY,
        topic text NOT NULL,
        video_id uuid NOT NULL,
        user_id text,
        happened_at timestamptz NOT NULL,
        details jsonb NOT NULL);

CREATE TABLE IF NOT EXISTS backlot_views (
        video_id uuid PRIMARY KEY,
        views bigint NOT NULL) WITH (fillfactor = 70);

ALTER TABLE backlot_telemetry
        ADD COLUMN IF NOT EXISTS seq bigint GENERATED ALWAYS AS IDENTITY,
        ADD COLUMN IF NOT EXISTS correlation_id text;

CREATE UNIQUE INDEX IF NOT EXISTS backlot_telemetry_seq ON backlot_telemetry (seq);

CREATE TABLE IF NOT EXISTS backlot_view_sessions (
        video_id uuid NOT NULL,
        viewer text COLLATE "C" NOT NULL,
        session text NOT NULL,
        began_at timestamptz NOT NULL,
        PRIMARY KEY (video_id, viewer)) WITH (fillfactor = 70);

CREATE INDEX IF NOT EXISTS backlot_telemetry_viewed ON backlot_telemetry (user_id, video_id)
        WHERE topic = 'video.viewed' AND user_id IS NOT NULL;

CREATE OR REPLACE FUNCTION backlot_take_telemetry(ids uuid[], topics text[], videos uuid[],
        users text[], times timestamptz[], details text[], correlations text[], viewers text[],
        repeat interval) RETURNS text[]
    LANGUAGE plpgsql AS $body$
    DECLARE
        told record;
        kept text;
        sessions text[] := array_fill(NULL::text, ARRAY[cardinality(ids)]);
    BEGIN
        PERFORM pg_advisory_xact_lock(7104878, 2);
        FOR told IN
            SELECT id, video, viewer, detail::jsonb->>'sessionId' AS session, place::int AS place
            FROM unnest(ids, topics, videos, details, viewers)
                WITH ORDINALITY AS e(id, topic, video, detail, viewer, place)
            WHERE topic = 'video.viewed' AND viewer IS NOT NULL
            ORDER BY e.place
        LOOP
            SELECT t.details->>'sessionId' INTO kept
            FROM backlot_telemetry AS t WHERE t.event_id = told.id;
            IF NOT FOUND THEN
                INSERT INTO backlot_view_sessions AS s (video_id, viewer, session, began_at)
                VALUES (told.video, told.viewer, told.session, clock_timestamp())
                ON CONFLICT (video_id, viewer) DO UPDATE
                SET session = excluded.session, began_at = excluded.began_at
                WHERE s.began_at <= excluded.began_at - repeat
                RETURNING s.session INTO kept;
                IF NOT FOUND THEN
                    SELECT s.session INTO kept FROM backlot_view_sessions AS s
                    WHERE s.video_id = told.video AND s.viewer = told.viewer;
                    ids[told.place] := NULL;
                END IF;
            END IF;
            sessions[told.place] := kept;
        END LOOP;
        WITH taken AS (
            INSERT INTO backlot_telemetry
                (event_id, topic, video_id, user_id, happened_at, details, correlation_id)
            SELECT id, topic, video, "user", at, detail::jsonb, correlation
            FROM unnest(ids, topics, videos, users, times, details, correlations)
                WITH ORDINALITY AS e(id, topic, video, "user", at, detail, correlation, place)
            WHERE id IS NOT NULL
            ORDER BY place
            ON CONFLICT DO NOTHING
            RETURNING backlot_telemetry.topic, video_id)
        INSERT INTO backlot_views AS v (video_id, views)
        SELECT video_id, count(*) FROM taken WHERE taken.topic = 'video.viewed' GROUP BY video_id
        ORDER BY video_id
        ON CONFLICT (video_id) DO UPDATE SET views = v.views + excluded.views;
        PERFORM pg_notify('backlot_telemetry', '');
        RETURN sessions;
    END
    $body$;

CREATE TABLE IF NOT EXISTS backlot_viewer_salts (
        day date PRIMARY KEY,
        salt bytea NOT NULL);

CREATE TABLE IF NOT EXISTS public.backlot_seals (
    number bigint PRIMARY KEY,
    first bigint NOT NULL,
    last bigint NOT NULL,
    leaves bytea NOT NULL,
    hash bytea NOT NULL,
    previous bytea NOT NULL,
    signature bytea,
    key_id text,
    sealed_at timestamptz NOT NULL DEFAULT now());
ALTER TABLE public.backlot_seals ALTER COLUMN leaves SET STORAGE EXTERNAL;
CREATE TABLE IF NOT EXISTS public.backlot_verifications (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    verified_at timestamptz NOT NULL DEFAULT now(),
    complete boolean NOT NULL,
    ok boolean NOT NULL,
    report jsonb NOT NULL,
    seal bigint,
    seal_hash bytea);

CREATE TABLE IF NOT EXISTS backlot_consumer_places (
    consumer text NOT NULL,
    source text NOT NULL,
    partition int NOT NULL,
    position bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, source, partition)) WITH (fillfactor = 20);
CREATE TABLE IF NOT EXISTS processed_messages (
    consumer text NOT NULL,
    message_id uuid NOT NULL,
    processed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, message_id));
CREATE INDEX IF NOT EXISTS processed_messages_at ON processed_messages USING brin (processed_at);
CREATE TABLE IF NOT EXISTS backlot_dead_messages (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer text NOT NULL,
    topic text NOT NULL,
    source text NOT NULL,
    partition int NOT NULL,
    position bigint NOT NULL,
    message_id uuid,
    key text,
    value bytea,
    headers jsonb NOT NULL,
    reason text NOT NULL,
    attempts int NOT NULL DEFAULT 1,
    status text NOT NULL DEFAULT 'dead',
    died_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (consumer, source, partition, position));
CREATE INDEX IF NOT EXISTS backlot_dead_messages_wanted
    ON backlot_dead_messages (consumer) WHERE status = 'redrive';

CREATE TABLE IF NOT EXISTS backlot_relay (
    source text PRIMARY KEY,
    position bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()) WITH (fillfactor = 20);
CREATE TABLE IF NOT EXISTS backlot_undelivered (
    source text NOT NULL,
    position bigint NOT NULL,
    topic text NOT NULL,
    reason text NOT NULL,
    message_id uuid,
    key text,
    value bytea,
    noticed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, position));

CREATE SCHEMA IF NOT EXISTS projections;
CREATE TABLE IF NOT EXISTS projections.state (
    schema text PRIMARY KEY,
    name text NOT NULL,
    version int NOT NULL,
    position bigint NOT NULL DEFAULT 0,
    status text NOT NULL DEFAULT 'running',
    error text,
    error_position bigint,
    updated_at timestamptz NOT NULL DEFAULT now())
WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
CREATE TABLE IF NOT EXISTS projections.parked (
    schema text NOT NULL REFERENCES projections.state ON UPDATE CASCADE ON DELETE CASCADE,
    position bigint NOT NULL,
    projection text NOT NULL,
    error text NOT NULL,
    attempts int NOT NULL DEFAULT 1,
    parked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (schema, position));
DO $upgrade$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attname = 'status'
                   AND attrelid = 'projections.parked'::regclass) THEN
        ALTER TABLE projections.parked ADD status text NOT NULL DEFAULT 'parked',
            ADD decided_by text, ADD decided_at timestamptz, ADD reason text;
    END IF;
END $upgrade$;

CREATE TABLE IF NOT EXISTS projections.park_orders (
    projection text NOT NULL,
    topic text NOT NULL,
    fault text NOT NULL,
    until bigint NOT NULL,
    given_by text NOT NULL,
    reason text NOT NULL,
    given_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (projection, topic, fault));

CREATE TABLE IF NOT EXISTS projections.ledger (
    schema text NOT NULL REFERENCES projections.state ON UPDATE CASCADE ON DELETE CASCADE,
    block bigint NOT NULL,
    applied bigint NOT NULL,
    positions numeric NOT NULL,
    PRIMARY KEY (schema, block))
WITH (fillfactor = 20);
DO $upgrade$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attname = 'accounted_after'
                   AND attrelid = 'projections.state'::regclass) THEN
        ALTER TABLE projections.state ADD accounted_after bigint NOT NULL DEFAULT 0;
        UPDATE projections.state s SET accounted_after = position
        WHERE NOT EXISTS (SELECT FROM projections.ledger l WHERE l.schema = s.schema);
    END IF;
END $upgrade$;

CREATE TABLE IF NOT EXISTS projections.like_drift (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    found_at timestamptz NOT NULL DEFAULT now(),
    video_id uuid NOT NULL,
    counter bigint NOT NULL,
    counter_position bigint NOT NULL,
    likes bigint NOT NULL,
    position bigint NOT NULL,
    repaired boolean NOT NULL);

CREATE TABLE IF NOT EXISTS projections.replays (
    id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    version int NOT NULL,
    schema text NOT NULL,
    purpose text NOT NULL,
    target bigint,
    workers int NOT NULL,
    state text NOT NULL,
    paused boolean NOT NULL DEFAULT false,
    confirmed boolean NOT NULL,
    requested_by text NOT NULL,
    operation_id uuid NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    position bigint NOT NULL DEFAULT 0,
    events_applied bigint NOT NULL DEFAULT 0,
    rate double precision,
    error text,
    result jsonb,
    unfinished text UNIQUE
        GENERATED ALWAYS AS (CASE WHEN finished_at IS NULL THEN name END) STORED);
CREATE TABLE IF NOT EXISTS projections.replay_partitions (
    replay_id bigint NOT NULL REFERENCES projections.replays ON DELETE CASCADE,
    partition int NOT NULL,
    position bigint NOT NULL DEFAULT 0,
    target bigint NOT NULL,
    PRIMARY KEY (replay_id, partition))
WITH (fillfactor = 20);

-- Events, which are only ever appended, and the answers that are kept under idempotency keys. The
-- columns of the events are named as the stock recorder of `eventsourcing` names them, so that its
-- tools read this store too. Recorders on tables of other names execute this file with those names.

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

CREATE UNIQUE INDEX IF NOT EXISTS backlot_events_notification_id_idx
    ON public.backlot_events (notification_id);

-- Called under the lock when at least one save can't be recorded: records the others, and returns
-- the numbers of those that can't.
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

-- Positions are given under a lock that is held until the commit, so that they are in commit order
-- and no reader can skip one. The ordinary case: nothing exists yet, one INSERT and done. A
-- uniqueness violation undoes only the inner block, and the saves are then told apart under the same
-- lock.
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
            INSERT INTO public.backlot_events_answers
                (actor, key, request_hash, status, body, position)
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

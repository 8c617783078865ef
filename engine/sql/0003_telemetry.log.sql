-- What viewers do beside deciding. `seq` counts it in the order in which it becomes visible.

CREATE TABLE IF NOT EXISTS public.backlot_telemetry (
    event_id uuid PRIMARY KEY,
    topic text NOT NULL,
    video_id uuid NOT NULL,
    user_id text,
    happened_at timestamptz NOT NULL,
    details jsonb NOT NULL);

ALTER TABLE public.backlot_telemetry
    ADD COLUMN IF NOT EXISTS seq bigint GENERATED ALWAYS AS IDENTITY,
    ADD COLUMN IF NOT EXISTS correlation_id text;

CREATE UNIQUE INDEX IF NOT EXISTS backlot_telemetry_seq ON public.backlot_telemetry (seq);

-- Whether somebody has watched a video.
CREATE INDEX IF NOT EXISTS backlot_telemetry_viewed ON public.backlot_telemetry (user_id, video_id)
    WHERE topic = 'video.viewed' AND user_id IS NOT NULL;

CREATE TABLE IF NOT EXISTS public.backlot_views (
    video_id uuid PRIMARY KEY,
    views bigint NOT NULL) WITH (fillfactor = 70);

-- The session in which each viewer of a video is, and when it began: by the clock of the database,
-- since the clocks of the processes differ.
CREATE TABLE IF NOT EXISTS public.backlot_view_sessions (
    video_id uuid NOT NULL,
    viewer text COLLATE "C" NOT NULL,
    session text NOT NULL,
    began_at timestamptz NOT NULL,
    PRIMARY KEY (video_id, viewer)) WITH (fillfactor = 70);

-- The salt of a day (UTC), with which the keys of viewers who have no name are made.
CREATE TABLE IF NOT EXISTS public.backlot_viewer_salts (
    day date PRIMARY KEY,
    salt bytea NOT NULL);

-- Under a lock that is held until the commit: what has a lower `seq` is visible by then. (A database
-- may hold this function with fewer parameters, too: that of earlier releases.)
CREATE OR REPLACE FUNCTION public.backlot_take_telemetry(ids uuid[], topics text[], videos uuid[],
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
        FROM public.backlot_telemetry AS t WHERE t.event_id = told.id;
        IF NOT FOUND THEN
            INSERT INTO public.backlot_view_sessions AS s (video_id, viewer, session, began_at)
            VALUES (told.video, told.viewer, told.session, clock_timestamp())
            ON CONFLICT (video_id, viewer) DO UPDATE
            SET session = excluded.session, began_at = excluded.began_at
            WHERE s.began_at <= excluded.began_at - repeat
            RETURNING s.session INTO kept;
            IF NOT FOUND THEN
                SELECT s.session INTO kept FROM public.backlot_view_sessions AS s
                WHERE s.video_id = told.video AND s.viewer = told.viewer;
                ids[told.place] := NULL;
            END IF;
        END IF;
        sessions[told.place] := kept;
    END LOOP;
    WITH taken AS (
        INSERT INTO public.backlot_telemetry
            (event_id, topic, video_id, user_id, happened_at, details, correlation_id)
        SELECT id, topic, video, "user", at, detail::jsonb, correlation
        FROM unnest(ids, topics, videos, users, times, details, correlations)
            WITH ORDINALITY AS e(id, topic, video, "user", at, detail, correlation, place)
        WHERE id IS NOT NULL
        ORDER BY place
        ON CONFLICT DO NOTHING
        RETURNING backlot_telemetry.topic, video_id)
    INSERT INTO public.backlot_views AS v (video_id, views)
    SELECT video_id, count(*) FROM taken WHERE taken.topic = 'video.viewed' GROUP BY video_id
    ORDER BY video_id
    ON CONFLICT (video_id) DO UPDATE SET views = v.views + excluded.views;
    PERFORM pg_notify('backlot_telemetry', '');
    RETURN sessions;
END
$body$;

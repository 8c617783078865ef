-- How far the relay is, and what it could not publish, as the releases before 0008 kept it.

CREATE TABLE IF NOT EXISTS public.backlot_relay (
    source text PRIMARY KEY,
    position bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()) WITH (fillfactor = 20);

CREATE TABLE IF NOT EXISTS public.backlot_undelivered (
    source text NOT NULL,
    position bigint NOT NULL,
    topic text NOT NULL,
    reason text NOT NULL,
    message_id uuid,
    key text,
    value bytea,
    noticed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, position));

-- What consumers have done, as the releases before 0007 kept it: how far they are, what they handled,
-- what they could not handle.

CREATE TABLE IF NOT EXISTS public.backlot_consumer_places (
    consumer text NOT NULL,
    source text NOT NULL,
    partition int NOT NULL,
    position bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, source, partition)) WITH (fillfactor = 20);

CREATE TABLE IF NOT EXISTS public.processed_messages (
    consumer text NOT NULL,
    message_id uuid NOT NULL,
    processed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, message_id));
CREATE INDEX IF NOT EXISTS processed_messages_at
    ON public.processed_messages USING brin (processed_at);

CREATE TABLE IF NOT EXISTS public.backlot_dead_messages (
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
    ON public.backlot_dead_messages (consumer) WHERE status = 'redrive';

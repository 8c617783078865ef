-- Persons: a random pseudonym stands for each in all that is recorded. Who that is, and the key of
-- their texts, lies here alone; forgetting somebody destroys both.

-- What wraps the keys of persons, and what finds a person by name: themselves wrapped by a key that
-- lies outside of the database (`kek` says which).
CREATE TABLE public.backlot_wrapping_keys (
    number int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    purpose text NOT NULL CHECK (purpose IN ('lookup', 'persons')),
    kek text NOT NULL,
    wrapped bytea NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now());

-- A second key for lookups would hide everybody who is known by the first.
CREATE UNIQUE INDEX backlot_lookup_key ON public.backlot_wrapping_keys (purpose)
    WHERE purpose = 'lookup';

-- `lookup` is a keyed hash of the user id, which stays: a person who was forgotten must not come
-- back by a token that is still valid. `name` is the user id under the person's own key.
CREATE TABLE public.backlot_persons (
    pseudonym text COLLATE "C" PRIMARY KEY,
    lookup bytea NOT NULL UNIQUE,
    name bytea,
    key bytea,
    wrapping_key int REFERENCES public.backlot_wrapping_keys,
    fenced_at timestamptz,
    forgotten_at timestamptz,
    CHECK (forgotten_at IS NULL OR (fenced_at IS NOT NULL AND name IS NULL AND key IS NULL)),
    CHECK (forgotten_at IS NOT NULL OR (name IS NOT NULL AND key IS NOT NULL)));

CREATE INDEX backlot_persons_fenced ON public.backlot_persons (pseudonym)
    WHERE fenced_at IS NOT NULL;
CREATE INDEX backlot_persons_by_wrapping_key ON public.backlot_persons (wrapping_key)
    WHERE wrapping_key IS NOT NULL;

-- Who is named in what earlier releases recorded: their user ids are their pseudonyms, until the
-- log is rewritten.
CREATE TABLE public.backlot_former_names (name text COLLATE "C" PRIMARY KEY);

-- No user id is longer, or the name of a part of the system or of an operator.
CREATE FUNCTION public.backlot_names_in(payload jsonb) RETURNS SETOF text
LANGUAGE sql IMMUTABLE AS $body$
    SELECT value #>> '{}' FROM unnest(ARRAY[
        CASE WHEN coalesce(payload->>'actor_kind', '') NOT IN ('anonymous', 'system')
             THEN payload->'actor' END,
        payload->'owner', payload->'viewer', payload->'author', payload->'video_owner',
        payload->'reporter', payload->'blocker', payload->'blocked', payload->'user_id']) AS value
    WHERE jsonb_typeof(value) = 'string' AND char_length(value #>> '{}') BETWEEN 1 AND 128
      AND NOT starts_with(value #>> '{}', 'operator:') AND value #>> '{}' NOT IN
          ('system', 'expiry', 'privacy', 'projections', 'transcription', 'translation')
$body$;

-- What an event holds that is no JSON of PostgreSQL's: without the NULs that jsonb refuses; nothing of
-- what nobody can read.
CREATE FUNCTION public.backlot_payload(state bytea) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE AS $body$
DECLARE
    text text;
BEGIN
    text := convert_from(state, 'UTF8');
    IF strpos(text, '\u0000') > 0 THEN
        text := regexp_replace(text, '(?<!\\)((?:\\\\)*)\\u0000', '\1', 'g');
    END IF;
    RETURN text::jsonb;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    RETURN NULL;
END
$body$;

INSERT INTO public.backlot_former_names
SELECT DISTINCT named FROM (
    SELECT public.backlot_payload(state) AS payload FROM public.backlot_events OFFSET 0) AS e,
    LATERAL public.backlot_names_in(payload) AS named;

DROP FUNCTION public.backlot_payload;
DROP FUNCTION public.backlot_names_in;

INSERT INTO public.backlot_former_names
SELECT DISTINCT user_id FROM public.backlot_telemetry WHERE char_length(user_id) BETWEEN 1 AND 128
ON CONFLICT DO NOTHING;

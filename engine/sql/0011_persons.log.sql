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

INSERT INTO public.backlot_former_names
SELECT DISTINCT named FROM (
    SELECT unnest(ARRAY[payload->>'actor', payload->>'owner', payload->>'viewer',
                        payload->>'author', payload->>'video_owner', payload->>'reporter',
                        payload->>'blocker', payload->>'blocked', payload->>'user_id']) AS named
    FROM (SELECT convert_from(state, 'UTF8')::json AS payload FROM public.backlot_events
          OFFSET 0) AS e
    WHERE payload->>'actor_kind' IS DISTINCT FROM 'anonymous'
      AND payload->>'actor_kind' IS DISTINCT FROM 'system'
    UNION ALL
    SELECT user_id FROM public.backlot_telemetry) AS names
WHERE named IS NOT NULL;

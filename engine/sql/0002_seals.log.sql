-- Seals over the log, and verifications as they were answered, with the seal up to which a good one
-- has proved the log. EXTERNAL: hashes can't be compressed.

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

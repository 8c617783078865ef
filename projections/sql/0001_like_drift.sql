-- Like counters in Redis that differed from the read model at the same position.

CREATE SCHEMA IF NOT EXISTS projections;

CREATE TABLE IF NOT EXISTS projections.like_drift (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    found_at timestamptz NOT NULL DEFAULT now(),
    video_id uuid NOT NULL,
    counter bigint NOT NULL,
    counter_position bigint NOT NULL,
    likes bigint NOT NULL,
    position bigint NOT NULL,
    repaired boolean NOT NULL);

-- Which seconds of a video are watched: what reports with a position come to, by the hour. Reports that
-- are there already have none.
ALTER TABLE analytics.sessions ADD COLUMN first_position timestamptz;

-- The places of a video, in milliseconds from its beginning: 120 of a second each, then 60 of two, 60 of
-- four, and so on for a day (projections/analytics/audience.py).
CREATE TABLE analytics.audience_places (
    place int PRIMARY KEY,
    since bigint NOT NULL,
    until bigint NOT NULL);
INSERT INTO analytics.audience_places (place, since, until)
SELECT place, 1000 * ((place - 60 * octave)::bigint << octave),
       least(1000 * ((place + 1 - 60 * octave)::bigint << octave), 86400000)
FROM generate_series(0, 684) AS places(place), greatest(place / 60 - 1, 0) AS octave;

-- How many sessions told a position for the first time, and how long each place was watched, from the
-- first to the last that was. It names nobody.
CREATE TABLE analytics.audience_hourly (
    bucket timestamptz NOT NULL,
    video_id uuid NOT NULL,
    sessions bigint NOT NULL,
    milliseconds bigint[] NOT NULL,
    PRIMARY KEY (video_id, bucket)) WITH (fillfactor = 70);
CREATE INDEX audience_hourly_bucket ON analytics.audience_hourly USING brin (bucket);

CREATE VIEW backlot_bi.retention AS
SELECT video_id, (bucket AT TIME ZONE 'UTC')::date AS day, since / 1000 AS second,
       until / 1000 AS end_second, sum(ms)::double precision / 1000 AS watch_seconds
FROM analytics.audience_hourly
CROSS JOIN LATERAL unnest(milliseconds) WITH ORDINALITY AS watched(ms, number)
JOIN analytics.audience_places ON place = number - 1
GROUP BY 1, 2, 3, 4 HAVING sum(ms) > 0;

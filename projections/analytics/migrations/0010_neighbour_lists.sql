-- The neighbours of a video in one row, and what came since in another, smaller one: an engagement
-- changes about twenty small rows, and a list is written once for many of them. Every video that
-- has neighbours has deltas, if empty ones. Long values stay in their row while a page holds them,
-- and are not compressed: ids and weights don't shrink.
CREATE TABLE analytics.neighbour_lists (
    video_id uuid PRIMARY KEY,
    neighbour_ids uuid[] NOT NULL,
    weights double precision[] NOT NULL,
    as_of double precision[] NOT NULL)
WITH (fillfactor = 70, toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.05);
CREATE TABLE analytics.neighbour_deltas (
    video_id uuid PRIMARY KEY,
    neighbour_ids uuid[] NOT NULL DEFAULT '{}',
    weights double precision[] NOT NULL DEFAULT '{}',
    as_of double precision[] NOT NULL DEFAULT '{}')
WITH (fillfactor = 50, toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE analytics.neighbour_lists
    ALTER neighbour_ids SET STORAGE EXTERNAL,
    ALTER weights SET STORAGE EXTERNAL,
    ALTER as_of SET STORAGE EXTERNAL;
ALTER TABLE analytics.neighbour_deltas
    ALTER neighbour_ids SET STORAGE EXTERNAL,
    ALTER weights SET STORAGE EXTERNAL,
    ALTER as_of SET STORAGE EXTERNAL;

INSERT INTO analytics.neighbour_lists
SELECT video_id, array_agg(neighbour_id), array_agg(weight), array_agg(as_of)
FROM analytics.neighbours GROUP BY video_id;
INSERT INTO analytics.neighbour_deltas SELECT video_id FROM analytics.neighbour_lists;
DROP TABLE analytics.neighbours;
CREATE INDEX videos_removed ON analytics.videos (video_id) WHERE removed;
ALTER TABLE analytics.engagement DROP COLUMN neighbours;

-- What two videos have in common is the sum of their rows here, each of which is above zero.
CREATE VIEW analytics.neighbours AS
SELECT d.video_id, n.neighbour_id, n.weight, n.as_of
FROM analytics.neighbour_deltas AS d LEFT JOIN analytics.neighbour_lists AS l USING (video_id)
CROSS JOIN LATERAL unnest(
    l.neighbour_ids || d.neighbour_ids, l.weights || d.weights, l.as_of || d.as_of)
    AS n (neighbour_id, weight, as_of);

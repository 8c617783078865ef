-- Videos that somebody engages with are numbered. Turns and neighbours name them by these numbers, in a
-- quarter of the bytes of their ids: what an engagement changes fits into far fewer pages. This takes
-- as long as there are many viewers, videos and neighbours; until its end everything can be read.
SET LOCAL statement_timeout = 0;
SET LOCAL enable_seqscan = on;
SET LOCAL enable_bitmapscan = on;
SET LOCAL work_mem = '128MB';
-- As whoever writes these rows does: Lock.RECOMMENDATION_ROWS.
SELECT pg_advisory_xact_lock(7104878, 9);

-- How much each video is engaged with, and its number. Those that are engaged with most come first, so
-- that the rows of their neighbours lie together.
CREATE TABLE analytics.numbered_engagement (
    number int PRIMARY KEY,
    video_id uuid NOT NULL UNIQUE,
    weight double precision NOT NULL,
    as_of double precision NOT NULL) WITH (fillfactor = 70);
INSERT INTO analytics.numbered_engagement
SELECT row_number() OVER (ORDER BY weight DESC, video_id), video_id, weight, as_of
FROM analytics.engagement;
-- None is left out, so that no turn moves: only what was written by hand is not there.
INSERT INTO analytics.numbered_engagement
SELECT (SELECT count(*) FROM analytics.numbered_engagement)
       + row_number() OVER (ORDER BY video_id), video_id, 1e-9, 0
FROM (SELECT video_id FROM analytics.engaged EXCEPT
      SELECT video_id FROM analytics.numbered_engagement) AS others;
ANALYZE analytics.numbered_engagement;

-- As before, but for the numbers: times are in seconds since 1970, and the turns of a viewer begin
-- after the first 20 · `parts`. Where none of them has a time, there are no times.
CREATE TABLE analytics.numbered_viewers (
    viewer text COLLATE "C" NOT NULL,
    hour timestamptz NOT NULL,
    engaged int NOT NULL,
    parts int NOT NULL,
    videos int[] NOT NULL,
    watched double precision[] NOT NULL,
    stayed double precision[] NOT NULL,
    liked double precision[] NOT NULL,
    last_watched_ids uuid[] NOT NULL,
    last_watched_at double precision[] NOT NULL)
WITH (fillfactor = 70, toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.05);
CREATE TABLE analytics.numbered_turns (
    viewer text COLLATE "C" NOT NULL,
    part int NOT NULL,
    videos int[] NOT NULL,
    watched double precision[] NOT NULL,
    stayed double precision[] NOT NULL,
    liked double precision[] NOT NULL) WITH (toast_tuple_target = 8160);
-- A list may name a neighbour more than once, until it is cut.
CREATE TABLE analytics.numbered_lists (
    number int NOT NULL,
    neighbours int[] NOT NULL,
    weights double precision[] NOT NULL,
    as_of double precision[] NOT NULL)
WITH (fillfactor = 70, toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.05);
CREATE TABLE analytics.numbered_deltas (
    number int NOT NULL,
    neighbours int[] NOT NULL DEFAULT '{}',
    weights double precision[] NOT NULL DEFAULT '{}',
    as_of double precision[] NOT NULL DEFAULT '{}')
WITH (fillfactor = 50, toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE analytics.numbered_viewers
    ALTER videos SET STORAGE EXTERNAL,
    ALTER watched SET STORAGE EXTERNAL,
    ALTER last_watched_ids SET STORAGE EXTERNAL,
    ALTER last_watched_at SET STORAGE EXTERNAL;
ALTER TABLE analytics.numbered_turns
    ALTER videos SET STORAGE EXTERNAL,
    ALTER watched SET STORAGE EXTERNAL;
ALTER TABLE analytics.numbered_lists
    ALTER neighbours SET STORAGE EXTERNAL,
    ALTER weights SET STORAGE EXTERNAL,
    ALTER as_of SET STORAGE EXTERNAL;
ALTER TABLE analytics.numbered_deltas
    ALTER neighbours SET STORAGE EXTERNAL,
    ALTER weights SET STORAGE EXTERNAL,
    ALTER as_of SET STORAGE EXTERNAL;

INSERT INTO analytics.numbered_viewers
SELECT viewer, hour, engaged, parts,
       ARRAY (SELECT number FROM unnest(video_ids) WITH ORDINALITY AS turns (video_id, turn)
              JOIN analytics.numbered_engagement USING (video_id) ORDER BY turn),
       CASE WHEN num_nonnulls(VARIADIC watched) > 0 THEN watched ELSE '{}' END,
       CASE WHEN num_nonnulls(VARIADIC stayed) > 0 THEN stayed ELSE '{}' END,
       CASE WHEN num_nonnulls(VARIADIC liked) > 0 THEN liked ELSE '{}' END, last_watched_ids, last_watched_at
FROM analytics.viewers;
INSERT INTO analytics.numbered_turns
SELECT viewer, part,
       ARRAY (SELECT number FROM unnest(video_ids) WITH ORDINALITY AS turns (video_id, turn)
              JOIN analytics.numbered_engagement USING (video_id) ORDER BY turn),
       CASE WHEN num_nonnulls(VARIADIC watched) > 0 THEN watched ELSE '{}' END,
       CASE WHEN num_nonnulls(VARIADIC stayed) > 0 THEN stayed ELSE '{}' END,
       CASE WHEN num_nonnulls(VARIADIC liked) > 0 THEN liked ELSE '{}' END
FROM analytics.earlier_turns;
INSERT INTO analytics.numbered_lists
SELECT own.number, its.* FROM analytics.neighbour_lists AS l
JOIN analytics.numbered_engagement AS own USING (video_id)
CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(number), '{}'), coalesce(array_agg(n.weight), '{}'),
           coalesce(array_agg(n.as_of), '{}')
    FROM unnest(l.neighbour_ids, l.weights, l.as_of) AS n (video_id, weight, as_of)
    JOIN analytics.numbered_engagement USING (video_id)) AS its
ORDER BY own.number;
INSERT INTO analytics.numbered_deltas
SELECT own.number, its.* FROM analytics.neighbour_deltas AS d
JOIN analytics.numbered_engagement AS own USING (video_id)
CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(number), '{}'), coalesce(array_agg(n.weight), '{}'),
           coalesce(array_agg(n.as_of), '{}')
    FROM unnest(d.neighbour_ids, d.weights, d.as_of) AS n (video_id, weight, as_of)
    JOIN analytics.numbered_engagement USING (video_id)) AS its
ORDER BY own.number;

DROP VIEW analytics.neighbours;
DROP TABLE analytics.engagement, analytics.viewers, analytics.earlier_turns,
    analytics.neighbour_lists, analytics.neighbour_deltas;
ALTER TABLE analytics.numbered_engagement RENAME TO engagement;
ALTER INDEX analytics.numbered_engagement_pkey RENAME TO engagement_pkey;
ALTER INDEX analytics.numbered_engagement_video_id_key RENAME TO engagement_video_id_key;
ALTER TABLE analytics.numbered_viewers RENAME TO viewers;
ALTER TABLE analytics.numbered_turns RENAME TO earlier_turns;
ALTER TABLE analytics.numbered_lists RENAME TO neighbour_lists;
ALTER TABLE analytics.numbered_deltas RENAME TO neighbour_deltas;
ALTER TABLE analytics.viewers ADD PRIMARY KEY (viewer);
ALTER TABLE analytics.earlier_turns ADD PRIMARY KEY (viewer, part);
ALTER TABLE analytics.neighbour_lists ADD PRIMARY KEY (number);
ALTER TABLE analytics.neighbour_deltas ADD PRIMARY KEY (number);

-- What two videos have in common is the sum of their rows here, each of which is above zero. Every
-- video that has neighbours has deltas, if empty ones.
CREATE VIEW analytics.neighbours AS
SELECT mine.video_id, its.video_id AS neighbour_id, n.weight, n.as_of
FROM analytics.neighbour_deltas AS d LEFT JOIN analytics.neighbour_lists AS l USING (number)
CROSS JOIN LATERAL unnest(
    l.neighbours || d.neighbours, l.weights || d.weights, l.as_of || d.as_of)
    AS n (neighbour, weight, as_of)
JOIN analytics.engagement AS mine ON mine.number = d.number
JOIN analytics.engagement AS its ON its.number = n.neighbour;

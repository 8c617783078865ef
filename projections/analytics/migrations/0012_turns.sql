-- A viewer's last turns lie together, in one row that changes in place: what comes next is paired with
-- them. Before, they lay all over `engaged`, and each engagement went into four indexes. This takes as
-- long as all engagements are many.
SET LOCAL statement_timeout = 0;
SET LOCAL enable_seqscan = on;
SET LOCAL enable_bitmapscan = on;

DROP INDEX analytics.engaged_latest, analytics.engaged_watched, analytics.engaged_turns;
-- None is left out: only what was there before turns were, or was written by hand, is numbered anew.
UPDATE analytics.engaged AS e SET turn = numbered.turn
FROM (SELECT viewer, video_id, row_number() OVER (PARTITION BY viewer ORDER BY turn) AS turn
      FROM analytics.engaged WHERE turn IS NOT NULL) AS numbered
WHERE e.viewer = numbered.viewer AND e.video_id = numbered.video_id AND e.turn <> numbered.turn;

-- Times are in seconds since 1970. The turns begin after the first 20 · `parts`, which are among the
-- earlier ones, and are 20 or more where there are so many; each has its video, and when it was
-- watched, stayed with and liked, as far as that was paired. The videos watched last, 20 at most, are
-- listed newest first. `engaged` is how many new engagements there were in the latest `hour`.
CREATE TABLE analytics.viewers (
    viewer text COLLATE "C" PRIMARY KEY,
    hour timestamptz NOT NULL,
    engaged int NOT NULL,
    parts int NOT NULL,
    video_ids uuid[] NOT NULL,
    watched double precision[] NOT NULL,
    stayed double precision[] NOT NULL,
    liked double precision[] NOT NULL,
    last_watched_ids uuid[] NOT NULL,
    last_watched_at double precision[] NOT NULL)
WITH (fillfactor = 70, toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.05);
-- The other turns, 20 in each part.
CREATE TABLE analytics.earlier_turns (
    viewer text COLLATE "C" NOT NULL,
    part int NOT NULL,
    video_ids uuid[] NOT NULL,
    watched double precision[] NOT NULL,
    stayed double precision[] NOT NULL,
    liked double precision[] NOT NULL,
    PRIMARY KEY (viewer, part)) WITH (toast_tuple_target = 8160);
ALTER TABLE analytics.viewers
    ALTER video_ids SET STORAGE EXTERNAL,
    ALTER watched SET STORAGE EXTERNAL,
    ALTER last_watched_ids SET STORAGE EXTERNAL,
    ALTER last_watched_at SET STORAGE EXTERNAL;
ALTER TABLE analytics.earlier_turns
    ALTER video_ids SET STORAGE EXTERNAL,
    ALTER watched SET STORAGE EXTERNAL;

WITH turns AS (
    SELECT viewer, ((turn - 1) / 20)::int AS part,
           (greatest(max(turn) OVER (PARTITION BY viewer) / 20 - 1, 0))::int AS parts,
           turn, video_id,
           extract(epoch FROM watch_paired_at)::double precision AS watched,
           extract(epoch FROM stay_paired_at)::double precision AS stayed,
           extract(epoch FROM like_paired_at)::double precision AS liked
    FROM analytics.engaged WHERE turn IS NOT NULL),
earlier AS (
    INSERT INTO analytics.earlier_turns (viewer, part, video_ids, watched, stayed, liked)
    SELECT viewer, part, array_agg(video_id ORDER BY turn), array_agg(watched ORDER BY turn),
           array_agg(stayed ORDER BY turn), array_agg(liked ORDER BY turn)
    FROM turns WHERE part < parts GROUP BY viewer, part),
latest AS (
    SELECT viewer, parts, array_agg(video_id ORDER BY turn) AS video_ids,
           array_agg(watched ORDER BY turn) AS watched, array_agg(stayed ORDER BY turn) AS stayed,
           array_agg(liked ORDER BY turn) AS liked
    FROM turns WHERE part >= parts GROUP BY viewer, parts),
seen AS (
    SELECT viewer, video_id, engaged_at,
           date_trunc('hour', max(engaged_at) OVER (PARTITION BY viewer), 'UTC') AS hour,
           extract(epoch FROM watched_at)::double precision AS at,
           row_number() OVER (PARTITION BY viewer ORDER BY watched_at DESC NULLS LAST, video_id)
               AS place
    FROM analytics.engaged),
summed AS (
    SELECT viewer, hour, count(*) FILTER (WHERE engaged_at >= hour)::int AS engaged,
           coalesce(array_agg(video_id ORDER BY place)
                    FILTER (WHERE place <= 20 AND at IS NOT NULL), '{}') AS last_watched_ids,
           coalesce(array_agg(at ORDER BY place)
                    FILTER (WHERE place <= 20 AND at IS NOT NULL), '{}') AS last_watched_at
    FROM seen GROUP BY viewer, hour)
INSERT INTO analytics.viewers (viewer, hour, engaged, parts, video_ids, watched, stayed, liked,
                               last_watched_ids, last_watched_at)
SELECT viewer, hour, engaged, coalesce(parts, 0), coalesce(video_ids, '{}'),
       coalesce(watched, '{}'), coalesce(stayed, '{}'), coalesce(liked, '{}'),
       last_watched_ids, last_watched_at
FROM summed LEFT JOIN latest USING (viewer);

-- Nothing but the key is indexed: who watches again, or likes, changes the row in its page.
ALTER TABLE analytics.engaged
    DROP COLUMN engaged_at,
    DROP COLUMN watch_paired_at,
    DROP COLUMN stay_paired_at,
    DROP COLUMN like_paired_at;
ALTER TABLE analytics.engaged SET (fillfactor = 90);

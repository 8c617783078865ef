-- What a viewer's engagements were paired by, so that an unlike can take back what its like brought
-- together: their turn, and when each kind was paired (not at all in an hour that was too full).
-- A like stands while it is later than `unliked_at`; `stayed_at` is when somebody had watched for a
-- while.
ALTER TABLE analytics.engaged
    ADD COLUMN stayed_at timestamptz,
    ADD COLUMN unliked_at timestamptz,
    ADD COLUMN turn bigint,
    ADD COLUMN watch_paired_at timestamptz,
    ADD COLUMN stay_paired_at timestamptz,
    ADD COLUMN like_paired_at timestamptz;

UPDATE analytics.engaged AS e
SET turn = numbered.turn, watch_paired_at = watched_at, like_paired_at = liked_at
FROM (SELECT viewer, video_id,
             row_number() OVER (PARTITION BY viewer ORDER BY engaged_at, video_id) AS turn
      FROM analytics.engaged) AS numbered
WHERE e.viewer = numbered.viewer AND e.video_id = numbered.video_id;

CREATE INDEX engaged_turns ON analytics.engaged (viewer, turn) WHERE turn IS NOT NULL;

-- Rows of pairs change in place, all over the table, as long as their pages have room.
ALTER TABLE analytics.neighbours SET (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05);

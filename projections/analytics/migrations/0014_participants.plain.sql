-- What the rules remember of each viewer who has a name, per video: comments that stand, seconds watched.
-- Filled from all that is kept, which takes as long as that is much. Rows that are there count in
-- trending as they did, until `projections replay` judges their viewers again.
SET LOCAL statement_timeout = 0;
SET LOCAL enable_seqscan = on;
SET LOCAL enable_bitmapscan = on;

\ir shared/participants.sql

ALTER TABLE analytics.video_hourly
    ADD COLUMN trending_likes bigint NOT NULL DEFAULT 0,
    ADD COLUMN trending_comments bigint NOT NULL DEFAULT 0;
ALTER TABLE analytics.video_daily
    ADD COLUMN trending_likes bigint NOT NULL DEFAULT 0,
    ADD COLUMN trending_comments bigint NOT NULL DEFAULT 0;
UPDATE analytics.video_hourly SET trending_likes = likes, trending_comments = comments
WHERE (likes, comments) <> (0, 0);
UPDATE analytics.video_daily SET trending_likes = likes, trending_comments = comments
WHERE (likes, comments) <> (0, 0);

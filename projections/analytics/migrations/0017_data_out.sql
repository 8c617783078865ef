-- Shares are few among the views: who asks through which channels a video was shared finds them here.
SET LOCAL statement_timeout = 0;
CREATE INDEX video_analytics_shares ON analytics.video_analytics (video_id, "timestamp")
    WHERE event_type = 'share';
CREATE INDEX videos_owner ON analytics.videos (owner);

-- What tools for reports may read: a contract (docs/bi.md), without anybody's name or pseudonym. A
-- view reads with the rights of its owner, so whoever reads it needs none to the tables.
CREATE SCHEMA IF NOT EXISTS backlot_bi;
CREATE VIEW backlot_bi.videos AS
SELECT video_id, category, completed_at, removed, listed AS public, duration_seconds
FROM analytics.videos WHERE completed_at IS NOT NULL;
CREATE VIEW backlot_bi.daily AS
SELECT video_id, (bucket AT TIME ZONE 'UTC')::date AS day, views, likes, comments, shares,
       watch_seconds
FROM analytics.video_daily;
CREATE VIEW backlot_bi.hourly AS
SELECT video_id, bucket AS hour, views, likes, comments, shares, watch_seconds
FROM analytics.video_hourly;
CREATE VIEW backlot_bi.viewers_daily AS
SELECT video_id, (bucket AT TIME ZONE 'UTC')::date AS day, sum(viewers)::bigint AS viewers
FROM analytics.viewers_hourly GROUP BY 1, 2 HAVING sum(viewers) > 0;
-- Neither viewer nor session, nor whether it was the owner, and whole seconds: so nobody finds out
-- what one viewer watched.
CREATE VIEW backlot_bi.views AS
SELECT video_id, date_trunc('second', "timestamp") AS at, (metadata->>'counts')::boolean AS counts
FROM analytics.video_analytics WHERE event_type = 'view';
CREATE VIEW backlot_bi.watch_time AS
SELECT video_id, date_trunc('second', "timestamp") AS at,
       (metadata->>'seconds')::double precision AS seconds
FROM analytics.video_analytics WHERE event_type = 'watch_time';
CREATE VIEW backlot_bi.shares AS
SELECT video_id, date_trunc('second', "timestamp") AS at, metadata->>'channel' AS channel
FROM analytics.video_analytics WHERE event_type = 'share';
CREATE VIEW backlot_bi.likes AS
SELECT video_id, date_trunc('second', "timestamp") AS at, (metadata->>'delta')::int AS delta
FROM analytics.video_analytics WHERE event_type = 'like';
CREATE VIEW backlot_bi.comments AS
SELECT video_id, date_trunc('second', "timestamp") AS at, (metadata->>'delta')::int AS delta
FROM analytics.video_analytics WHERE event_type = 'comment';

-- How many viewers there were since an hour is told by when each was there last, and is counted here
-- by the hour, so that nobody has to go through the viewers. This takes as long as all views are many.
SET LOCAL statement_timeout = 0;
SET LOCAL enable_seqscan = on;
SET LOCAL enable_bitmapscan = on;

-- Who viewed a video on a day (UTC), and in which hour last: a user id, or `session:` and the
-- session's id. In another order than before: a viewer's days lie together.
ALTER TABLE analytics.video_viewers RENAME TO video_viewers_before;
CREATE TABLE analytics.video_viewers (
    video_id uuid NOT NULL,
    day date NOT NULL,
    hour timestamptz NOT NULL,
    viewer text COLLATE "C" NOT NULL);
INSERT INTO analytics.video_viewers (video_id, day, hour, viewer)
SELECT video_id, day, coalesce(seen.hour, day::timestamp AT TIME ZONE 'UTC'), viewer
FROM analytics.video_viewers_before LEFT JOIN (
    SELECT video_id, ("timestamp" AT TIME ZONE 'UTC')::date AS day,
           coalesce(user_id, 'session:' || (metadata->>'session')) AS viewer,
           max(date_trunc('hour', "timestamp", 'UTC')) AS hour
    FROM analytics.video_analytics WHERE event_type = 'view' GROUP BY 1, 2, 3) AS seen
    USING (video_id, day, viewer)
ORDER BY day;
DROP TABLE analytics.video_viewers_before;
ALTER TABLE analytics.video_viewers ADD PRIMARY KEY (video_id, viewer, day);
CREATE INDEX video_viewers_day ON analytics.video_viewers USING brin (day);

-- Viewers of each day by the hour of their last view; `latest` are those who came on no later day.
CREATE TABLE analytics.viewers_hourly (
    bucket timestamptz NOT NULL,
    video_id uuid NOT NULL,
    viewers int NOT NULL,
    latest int NOT NULL,
    PRIMARY KEY (video_id, bucket)) WITH (fillfactor = 70);
INSERT INTO analytics.viewers_hourly (bucket, video_id, viewers, latest)
SELECT hour, video_id, count(*), count(*) FILTER (WHERE is_latest)
FROM (SELECT video_id, hour,
             lead(day) OVER (PARTITION BY video_id, viewer ORDER BY day) IS NULL AS is_latest
      FROM analytics.video_viewers) AS viewed
GROUP BY 1, 2 ORDER BY 1;
CREATE INDEX viewers_hourly_bucket ON analytics.viewers_hourly USING brin (bucket);

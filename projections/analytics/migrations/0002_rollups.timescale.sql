SELECT create_hypertable('analytics.video_analytics', by_range('timestamp', interval '1 day'));

CREATE MATERIALIZED VIEW analytics.video_hourly
WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT time_bucket(interval '1 hour', "timestamp") AS bucket, video_id,
       count(*) FILTER (WHERE event_type = 'view' AND (metadata->>'counts')::boolean) AS views,
       count(*) FILTER (WHERE event_type = 'view' AND (metadata->>'counts')::boolean
                          AND NOT (metadata->>'own')::boolean) AS trending_views,
       coalesce(sum((metadata->>'delta')::bigint) FILTER (WHERE event_type = 'like'), 0)::bigint
           AS likes,
       coalesce(sum((metadata->>'delta')::bigint) FILTER (WHERE event_type = 'comment'), 0)::bigint
           AS comments,
       count(*) FILTER (WHERE event_type = 'share') AS shares,
       coalesce(sum((metadata->>'seconds')::double precision)
           FILTER (WHERE event_type = 'watch_time'), 0) AS watch_seconds,
       coalesce(sum((metadata->>'seconds')::double precision)
           FILTER (WHERE event_type = 'watch_time' AND NOT (metadata->>'own')::boolean), 0)
           AS trending_watch_seconds
FROM analytics.video_analytics
GROUP BY 1, 2
WITH NO DATA;

CREATE MATERIALIZED VIEW analytics.video_daily
WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT time_bucket(interval '1 day', bucket) AS bucket, video_id,
       sum(views)::bigint AS views,
       sum(trending_views)::bigint AS trending_views,
       sum(likes)::bigint AS likes,
       sum(comments)::bigint AS comments,
       sum(shares)::bigint AS shares,
       sum(watch_seconds) AS watch_seconds,
       sum(trending_watch_seconds) AS trending_watch_seconds
FROM analytics.video_hourly
GROUP BY 1, 2
WITH NO DATA;

-- A refresh visits only what has changed, so that the windows may be wide: whatever comes late is
-- found in them. They must be shorter than the retention, or else a refresh erases old rollups.
-- All these follow the setting of the retention once the role `workers` has run.
SELECT add_continuous_aggregate_policy('analytics.video_hourly',
    start_offset => interval '725 days', end_offset => interval '1 hour',
    schedule_interval => interval '5 minutes');
SELECT add_continuous_aggregate_policy('analytics.video_daily',
    start_offset => interval '725 days', end_offset => interval '1 day',
    schedule_interval => interval '15 minutes');

-- By the kind of event, of which there are few: by video, segments were of a few rows, five times as
-- large, and late rows took a hundred times as long.
ALTER TABLE analytics.video_analytics SET (
    timescaledb.enable_columnstore, timescaledb.segmentby = 'event_type',
    timescaledb.orderby = '"timestamp" DESC');
CALL add_columnstore_policy('analytics.video_analytics', after => interval '7 days');
SELECT add_retention_policy('analytics.video_analytics', drop_after => interval '730 days');
SELECT add_retention_policy('analytics.video_hourly', drop_after => interval '730 days');

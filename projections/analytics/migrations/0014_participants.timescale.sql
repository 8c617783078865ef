-- What the rules remember of each viewer who has a name, per video: comments that stand, seconds watched.
-- Filled from all that is kept, which takes as long as that is much. Rows that are there count in
-- trending as they did, until `projections replay` judges their viewers again.
SET LOCAL statement_timeout = 0;
SET LOCAL enable_seqscan = on;
SET LOCAL enable_bitmapscan = on;

-- First of all, which ends a refresh that runs: it and this would block each other.
SELECT remove_continuous_aggregate_policy('analytics.video_daily');
SELECT remove_continuous_aggregate_policy('analytics.video_hourly');
SELECT remove_retention_policy('analytics.video_hourly');

\ir shared/participants.sql

-- A continuous aggregate gets no new columns: both are made anew. What is too old to be made again is
-- kept; it shows with the policies' first run, which is at once.
CREATE TEMPORARY TABLE refreshed_since ON COMMIT DROP AS
SELECT now() - make_interval(days => within) AS at, within
FROM (SELECT extract(day FROM now() - greatest(floor, now() - make_interval(days => days))
                              - interval '5 days')::int AS within
      FROM analytics.retention) AS r;
CREATE TEMPORARY TABLE kept_daily ON COMMIT DROP AS
SELECT bucket, video_id, views, trending_views, likes, comments, shares, watch_seconds,
       trending_watch_seconds, likes AS trending_likes, comments AS trending_comments
FROM analytics.video_daily
WHERE bucket < (SELECT at FROM refreshed_since);
DROP MATERIALIZED VIEW analytics.video_daily;
DROP MATERIALIZED VIEW analytics.video_hourly;

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
       coalesce(sum(coalesce(metadata->>'trending', metadata->>'seconds')::double precision)
           FILTER (WHERE event_type = 'watch_time' AND NOT (metadata->>'own')::boolean), 0)
           AS trending_watch_seconds,
       coalesce(sum(coalesce(metadata->>'trending', metadata->>'delta')::bigint)
           FILTER (WHERE event_type = 'like'), 0)::bigint AS trending_likes,
       coalesce(sum(coalesce(metadata->>'trending', metadata->>'delta')::bigint)
           FILTER (WHERE event_type = 'comment'), 0)::bigint AS trending_comments
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
       sum(trending_watch_seconds) AS trending_watch_seconds,
       sum(trending_likes)::bigint AS trending_likes,
       sum(trending_comments)::bigint AS trending_comments
FROM analytics.video_hourly
GROUP BY 1, 2
WITH NO DATA;

DO $body$
DECLARE
    materialized regclass;
BEGIN
    SELECT format('%I.%I', materialization_hypertable_schema, materialization_hypertable_name)
    INTO STRICT materialized
    FROM timescaledb_information.continuous_aggregates
    WHERE view_schema = 'analytics' AND view_name = 'video_daily';
    EXECUTE format('INSERT INTO %s (bucket, video_id, views, trending_views, likes, comments, shares,
        watch_seconds, trending_watch_seconds, trending_likes, trending_comments)
        SELECT * FROM kept_daily', materialized);
END
$body$;

-- As before, with the windows that the retention has left them.
SELECT add_continuous_aggregate_policy('analytics.video_hourly',
    start_offset => make_interval(days => within), end_offset => interval '1 hour',
    schedule_interval => interval '5 minutes') FROM refreshed_since;
SELECT add_continuous_aggregate_policy('analytics.video_daily',
    start_offset => make_interval(days => within), end_offset => interval '1 day',
    schedule_interval => interval '15 minutes') FROM refreshed_since;
SELECT add_retention_policy('analytics.video_hourly', drop_after => make_interval(days => days))
FROM analytics.retention;

CREATE TABLE analytics.video_hourly (
    bucket timestamptz NOT NULL,
    video_id uuid NOT NULL,
    views bigint NOT NULL,
    trending_views bigint NOT NULL,
    likes bigint NOT NULL,
    comments bigint NOT NULL,
    shares bigint NOT NULL,
    watch_seconds double precision NOT NULL,
    trending_watch_seconds double precision NOT NULL,
    PRIMARY KEY (video_id, bucket)) WITH (fillfactor = 70);
CREATE INDEX video_hourly_bucket ON analytics.video_hourly (bucket);

CREATE TABLE analytics.video_daily (
    bucket timestamptz NOT NULL,
    video_id uuid NOT NULL,
    views bigint NOT NULL,
    trending_views bigint NOT NULL,
    likes bigint NOT NULL,
    comments bigint NOT NULL,
    shares bigint NOT NULL,
    watch_seconds double precision NOT NULL,
    trending_watch_seconds double precision NOT NULL,
    PRIMARY KEY (video_id, bucket)) WITH (fillfactor = 70);
CREATE INDEX video_daily_bucket ON analytics.video_daily (bucket);

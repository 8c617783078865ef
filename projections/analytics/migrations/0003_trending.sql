-- What trending's windows hold of each video but for the newest hours, so that a ranking reads one
-- row of each. Made anew every few minutes from the rollups: nothing is lost with them.
CREATE TABLE analytics.trending_sums (
    time_range text COLLATE "C" NOT NULL,
    video_id uuid NOT NULL,
    views double precision NOT NULL,
    likes double precision NOT NULL,
    comments double precision NOT NULL,
    minutes double precision NOT NULL,
    recent_views double precision NOT NULL,
    recent_likes double precision NOT NULL,
    recent_comments double precision NOT NULL,
    recent_minutes double precision NOT NULL,
    -- Orders the videos at any time, by the formula that `trending_settled` tells; NULL where there
    -- are no points.
    sort_key double precision,
    PRIMARY KEY (time_range, video_id)) PARTITION BY LIST (time_range);
CREATE UNLOGGED TABLE analytics.trending_sums_7d
    PARTITION OF analytics.trending_sums FOR VALUES IN ('7d');
CREATE UNLOGGED TABLE analytics.trending_sums_30d
    PARTITION OF analytics.trending_sums FOR VALUES IN ('30d');
CREATE UNLOGGED TABLE analytics.trending_sums_all
    PARTITION OF analytics.trending_sums FOR VALUES IN ('all');
CREATE INDEX trending_sums_sort_key ON analytics.trending_sums (time_range, sort_key)
    WHERE sort_key IS NOT NULL;

-- Of which time the sums are: the hour in which the window ends, and since when nothing is in them;
-- what counted as recent, and what weighed how much.
CREATE UNLOGGED TABLE analytics.trending_settled (
    time_range text COLLATE "C" PRIMARY KEY,
    hour timestamptz NOT NULL,
    until timestamptz NOT NULL,
    recent_hours int NOT NULL,
    formula jsonb NOT NULL);

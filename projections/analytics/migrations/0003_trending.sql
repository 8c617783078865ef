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
    PRIMARY KEY (time_range, video_id)) PARTITION BY LIST (time_range);
CREATE UNLOGGED TABLE analytics.trending_sums_7d
    PARTITION OF analytics.trending_sums FOR VALUES IN ('7d');
CREATE UNLOGGED TABLE analytics.trending_sums_30d
    PARTITION OF analytics.trending_sums FOR VALUES IN ('30d');
CREATE UNLOGGED TABLE analytics.trending_sums_all
    PARTITION OF analytics.trending_sums FOR VALUES IN ('all');

-- Of which time the sums are: the window's end, and what counted as recent in it.
CREATE UNLOGGED TABLE analytics.trending_settled (
    time_range text COLLATE "C" PRIMARY KEY,
    hour timestamptz NOT NULL,
    recent_hours int NOT NULL);

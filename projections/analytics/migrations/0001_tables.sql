CREATE TABLE analytics.video_analytics (
    event_id uuid NOT NULL,
    video_id uuid NOT NULL,
    user_id text COLLATE "C",
    event_type text COLLATE "C" NOT NULL
        CHECK (event_type IN ('view', 'like', 'comment', 'watch_time', 'share')),
    "timestamp" timestamptz NOT NULL,
    metadata jsonb NOT NULL,
    UNIQUE (event_id, "timestamp"));
CREATE INDEX video_analytics_video ON analytics.video_analytics (video_id, "timestamp");
CREATE INDEX video_analytics_type ON analytics.video_analytics (event_type, "timestamp");
CREATE INDEX video_analytics_user ON analytics.video_analytics (user_id, "timestamp");
-- To look at a session's events again when one of them comes late.
CREATE INDEX video_analytics_session ON analytics.video_analytics ((metadata->>'session'))
    WHERE event_type IN ('view', 'watch_time');

-- Who viewed a video on a day (UTC): a user id, or `session:` and the session's id.
CREATE TABLE analytics.video_viewers (
    video_id uuid NOT NULL,
    day date NOT NULL,
    viewer text COLLATE "C" NOT NULL,
    PRIMARY KEY (video_id, day, viewer));

-- What the rules need to know of a session to go on with it, up to the event `latest`.
CREATE TABLE analytics.sessions (
    video_id uuid NOT NULL,
    session uuid NOT NULL,
    first_view timestamptz,
    counted_view timestamptz,
    last_report timestamptz,
    watched double precision NOT NULL,
    earliest timestamptz NOT NULL,
    latest timestamptz NOT NULL,
    PRIMARY KEY (video_id, session)) WITH (fillfactor = 70);

-- The videos as far as counting and ranking need them; one that is not completed has no time.
CREATE TABLE analytics.videos (
    video_id uuid PRIMARY KEY,
    owner text COLLATE "C" NOT NULL,
    category text COLLATE "C",
    completed_at timestamptz,
    removed boolean NOT NULL DEFAULT false,
    duration_seconds double precision);
CREATE INDEX videos_category ON analytics.videos (category) WHERE NOT removed;

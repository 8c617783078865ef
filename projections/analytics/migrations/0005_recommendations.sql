-- Who engaged with what: when last watched, when last liked. Only viewers who are known.
CREATE TABLE analytics.engaged (
    viewer text COLLATE "C" NOT NULL,
    video_id uuid NOT NULL,
    watched_at timestamptz,
    liked_at timestamptz,
    engaged_at timestamptz NOT NULL GENERATED ALWAYS AS (greatest(watched_at, liked_at)) STORED,
    PRIMARY KEY (viewer, video_id));
CREATE INDEX engaged_latest ON analytics.engaged (viewer, engaged_at DESC);
CREATE INDEX engaged_watched ON analytics.engaged (viewer, watched_at DESC)
    WHERE watched_at IS NOT NULL;

CREATE VIEW analytics.watched AS
SELECT viewer, video_id, watched_at AS at FROM analytics.engaged WHERE watched_at IS NOT NULL;

-- Videos that the same viewers engaged with, in both directions. A weight is that of the time
-- `as_of` (seconds since 1970), and halves with each half-life after it.
CREATE TABLE analytics.neighbours (
    video_id uuid NOT NULL,
    neighbour_id uuid NOT NULL,
    weight double precision NOT NULL,
    as_of double precision NOT NULL,
    PRIMARY KEY (video_id, neighbour_id)) WITH (fillfactor = 90);

-- How much each video was engaged with, to be divided by; and how many neighbours it has.
CREATE TABLE analytics.engagement (
    video_id uuid PRIMARY KEY,
    weight double precision NOT NULL,
    as_of double precision NOT NULL,
    neighbours int NOT NULL DEFAULT 0) WITH (fillfactor = 70);

-- The most engaged with of each category, made anew about once a minute while something happens.
CREATE TABLE analytics.category_tops (
    category text COLLATE "C" NOT NULL,
    place int NOT NULL,
    video_id uuid NOT NULL,
    PRIMARY KEY (category, place));
CREATE INDEX category_tops_place ON analytics.category_tops (place, category);

-- How long rows are kept, as the setting has it; what lies before `floor` is gone, and counts of
-- that time change no more.
CREATE TABLE analytics.retention (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    days int NOT NULL DEFAULT 730,
    floor timestamptz NOT NULL DEFAULT 'epoch');
INSERT INTO analytics.retention DEFAULT VALUES;

-- By which old rows are found; a few pages each, and no update has to write them.
CREATE INDEX video_viewers_day ON analytics.video_viewers USING brin (day);
CREATE INDEX sessions_latest ON analytics.sessions USING brin (latest);

-- Whether rankings and recommendations may show a video; before there was a visibility, all could.
ALTER TABLE analytics.videos ADD COLUMN listed boolean NOT NULL DEFAULT true;
CREATE INDEX videos_unlisted ON analytics.videos (video_id) WHERE NOT listed;

DROP TRIGGER listed_otherwise ON analytics.videos;
CREATE TRIGGER listed_otherwise
AFTER UPDATE OF category, completed_at, removed, listed ON analytics.videos
FOR EACH ROW WHEN ((old.category, old.completed_at, old.removed, old.listed)
                   IS DISTINCT FROM (new.category, new.completed_at, new.removed, new.listed))
EXECUTE FUNCTION analytics.begin_edition();

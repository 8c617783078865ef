-- Which rankings that were made before still hold: a kept one is of an edition, and another begins
-- whenever a video may be listed otherwise than before, whoever wrote that.
CREATE TABLE analytics.listing (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    edition bigint NOT NULL);
INSERT INTO analytics.listing (edition) VALUES (1);

CREATE FUNCTION analytics.begin_edition() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    UPDATE analytics.listing SET edition = edition + 1;
    RETURN NULL;
END
$body$;

CREATE TRIGGER listed_otherwise AFTER UPDATE OF category, completed_at, removed ON analytics.videos
FOR EACH ROW WHEN ((old.category, old.completed_at, old.removed)
                   IS DISTINCT FROM (new.category, new.completed_at, new.removed))
EXECUTE FUNCTION analytics.begin_edition();

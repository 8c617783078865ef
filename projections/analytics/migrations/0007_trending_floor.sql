-- What a video is worth without its age, NULL where that is not above 0: orders those of which age has
-- taken all that it can. Filled by the next settling; until then no ranking relies on it.
ALTER TABLE analytics.trending_sums ADD COLUMN base double precision;
CREATE INDEX trending_sums_base ON analytics.trending_sums (time_range, base)
    WHERE base IS NOT NULL;

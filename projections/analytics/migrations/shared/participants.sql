CREATE TABLE analytics.participants (
    video_id uuid NOT NULL,
    viewer text COLLATE "C" NOT NULL,
    comments bigint NOT NULL,
    seconds double precision NOT NULL,
    commented_at timestamptz,
    reported_at timestamptz,
    earliest timestamptz NOT NULL,
    latest timestamptz NOT NULL,
    PRIMARY KEY (video_id, viewer)) WITH (fillfactor = 70);
INSERT INTO analytics.participants
SELECT video_id, user_id,
       coalesce(sum((metadata->>'delta')::bigint) FILTER (WHERE event_type = 'comment'), 0),
       coalesce(sum((metadata->>'seconds')::double precision)
           FILTER (WHERE NOT (metadata->>'own')::boolean), 0),
       max("timestamp") FILTER (WHERE event_type = 'comment'),
       max("timestamp") FILTER (WHERE event_type = 'watch_time'),
       min("timestamp"), max("timestamp")
FROM analytics.video_analytics AS a
WHERE user_id IS NOT NULL
  AND (event_type IN ('comment', 'watch_time')
       OR event_type = 'like' AND NOT EXISTS (
           SELECT FROM analytics.videos AS v WHERE v.video_id = a.video_id))
GROUP BY video_id, user_id;
CREATE INDEX participants_latest ON analytics.participants USING brin (latest);

-- The checkpoints and the dead letters of projections, replays and the relay move to the tables of
-- 0007. What operators were told keeps its meaning: positions, errors, decisions, times.

LOCK TABLE projections.state, projections.parked, projections.ledger,
    projections.replay_partitions, public.backlot_relay, public.backlot_undelivered;

INSERT INTO public.backlot_checkpoints
    (kind, subscription, position, status, error, error_position, projection, version,
     accounted_after, updated_at)
SELECT 'projection', schema, position, status, error, error_position, name, version,
       accounted_after, updated_at
FROM projections.state;

INSERT INTO public.backlot_checkpoints (kind, subscription, partition, position, target, version)
SELECT 'replay', r.schema, p.partition, p.position, p.target, r.version
FROM projections.replay_partitions p JOIN projections.replays r ON r.id = p.replay_id
WHERE r.finished_at IS NULL;

INSERT INTO public.backlot_checkpoints (kind, subscription, source, position, updated_at)
SELECT 'relay', 'relay', source, position, updated_at FROM public.backlot_relay;

INSERT INTO public.backlot_dead_letters
    (kind, subscription, position, error, attempts, status, rejected_at, decided_by, decided_at,
     reason)
SELECT 'projection', schema, position, error, attempts, status, parked_at, decided_by, decided_at,
       reason
FROM projections.parked ORDER BY parked_at;

INSERT INTO public.backlot_dead_letters
    (kind, subscription, source, position, topic, message_id, key, value, error, status,
     rejected_at)
SELECT 'relay', 'relay', source, position, topic, message_id, key, value, reason, 'dead',
       noticed_at
FROM public.backlot_undelivered ORDER BY noticed_at;

ALTER TABLE projections.ledger DROP CONSTRAINT IF EXISTS ledger_schema_fkey;
DROP TABLE projections.parked, projections.state, projections.replay_partitions,
    public.backlot_relay, public.backlot_undelivered;

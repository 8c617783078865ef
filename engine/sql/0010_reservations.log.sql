-- What each user has begun: a row per stream, so that nobody begins more than their share. Whether
-- a stream has ended is asked of the log.

CREATE TABLE IF NOT EXISTS public.backlot_reservations (
    stream_id uuid PRIMARY KEY,
    owner text COLLATE "C" NOT NULL,
    amount bigint NOT NULL,
    reserved_at timestamptz NOT NULL);

CREATE INDEX IF NOT EXISTS backlot_reservations_by_owner ON public.backlot_reservations (owner);

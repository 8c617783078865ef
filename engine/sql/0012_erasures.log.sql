-- How far it is with each person whom the program forgets: a row is there since the fence. `step` is
-- what is done next or under way since `step_at`, `counts` what was removed so far, by part.
CREATE TABLE public.backlot_erasures (
    pseudonym text COLLATE "C" PRIMARY KEY REFERENCES public.backlot_persons,
    step text NOT NULL DEFAULT 'request',
    step_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    counts jsonb NOT NULL DEFAULT '{}',
    failures int NOT NULL DEFAULT 0,
    error text,
    finished_at timestamptz);

CREATE INDEX backlot_erasures_open ON public.backlot_erasures (pseudonym)
    WHERE finished_at IS NULL;
CREATE INDEX backlot_erasures_finished ON public.backlot_erasures (finished_at);

-- Who was fenced before there was this table.
INSERT INTO public.backlot_erasures (pseudonym)
SELECT pseudonym FROM public.backlot_persons WHERE fenced_at IS NOT NULL;

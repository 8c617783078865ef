-- Seals of format 2 hash everything that is shown of them, and commit to all seals before them by
-- the peaks of a tree. What is there has format 1; so has what a process of the last release seals.

ALTER TABLE public.backlot_seals
    ADD COLUMN format smallint NOT NULL DEFAULT 1,
    ADD COLUMN peaks bytea;

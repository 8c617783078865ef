-- With what the ids of lists are signed, in all processes.
CREATE TABLE lists.key (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    key bytea NOT NULL);
INSERT INTO lists.key (key)
VALUES (uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));

-- What is to be delivered to each webhook, was, or could not be. What a message says stands where it
-- was recorded, and is read there for each attempt: `feed` and `position` say where. Of its key there
-- is a digest, which orders.
CREATE TABLE webhooks.deliveries (
    delivery_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    webhook_id uuid NOT NULL,
    feed text NOT NULL,
    position bigint NOT NULL,
    topic text NOT NULL,
    message_id uuid,
    key bytea NOT NULL,
    recorded_at timestamptz NOT NULL,
    status text NOT NULL DEFAULT 'waiting',
    attempts int NOT NULL DEFAULT 0,
    due_at timestamptz NOT NULL DEFAULT now(),
    answer int,
    error text,
    tried_at timestamptz,
    settled_at timestamptz);

CREATE INDEX deliveries_of_webhook ON webhooks.deliveries (webhook_id, delivery_id);
CREATE INDEX deliveries_waiting ON webhooks.deliveries (webhook_id, delivery_id)
    WHERE status = 'waiting';

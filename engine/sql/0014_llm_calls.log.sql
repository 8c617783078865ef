-- What calls of language models took, by the hour in which they ended: how many, how many of them
-- without a usable answer, the tokens that providers counted, and US dollars where the price of the
-- model is known. All processes add to these rows.
CREATE TABLE public.backlot_llm_calls (
    hour timestamptz NOT NULL,
    purpose text NOT NULL,
    model text NOT NULL,
    calls bigint NOT NULL,
    failed bigint NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cost_usd double precision,
    PRIMARY KEY (hour, purpose, model)) WITH (fillfactor = 50);

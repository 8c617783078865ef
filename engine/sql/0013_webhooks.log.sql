-- A key more: the secrets of webhooks are derived from it.
ALTER TABLE public.backlot_wrapping_keys DROP CONSTRAINT backlot_wrapping_keys_purpose_check;
ALTER TABLE public.backlot_wrapping_keys ADD CONSTRAINT backlot_wrapping_keys_purpose_check
    CHECK (purpose IN ('lookup', 'persons', 'webhooks'));

-- A second one would take the secrets from all who have them.
CREATE UNIQUE INDEX backlot_webhook_key ON public.backlot_wrapping_keys (purpose)
    WHERE purpose = 'webhooks';

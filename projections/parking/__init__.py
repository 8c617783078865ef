"""Events that could not be applied: shown, tried again, decided about."""

"""Background tasks: Dramatiq with a broker by setting, retries and dead letters."""

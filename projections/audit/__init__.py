"""The audit of the log: an index that PostgreSQL makes, and what is asked of it."""

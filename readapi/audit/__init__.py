"""The audit over HTTP: events, streams, traces, counts, and whether the log is whole."""

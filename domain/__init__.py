"""The rules of the platform and the events that they record; no I/O, no clock, no randomness."""

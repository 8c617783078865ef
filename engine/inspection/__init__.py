"""Inspection of the event log: an index of it, searches, streams, causes and effects."""

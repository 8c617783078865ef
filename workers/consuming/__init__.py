"""Consumers of the published topics: what follows from an event outside of the read models.

A consumer reads the same messages from the event log itself or from Kafka, and can't tell which.
"""

"""Seals: a hash chain over the event log, its signatures, anchors and verification."""

"""Counts what is told: the keepers of the analytics."""

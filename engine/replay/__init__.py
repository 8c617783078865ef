"""Replays: a copy of a projection, built beside the live one, compared, and cut over."""

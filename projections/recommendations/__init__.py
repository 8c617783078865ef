"""Recommendations: candidates, their order, and reasons that a user can read."""

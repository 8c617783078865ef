"""The query API: one router per feature."""

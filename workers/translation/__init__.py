"""Translation: from a comment's event to a recorded translation."""

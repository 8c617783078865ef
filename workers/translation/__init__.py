"""Comments in other languages: from their event to a recorded translation."""

"""Languages of comments: what of a text is words, and detectors of their language."""

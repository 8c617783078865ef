"""The upload client: a file, sent in parts and resumed where it was interrupted."""

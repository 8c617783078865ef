"""Media objects: the port, and the stores behind it, a folder or S3."""

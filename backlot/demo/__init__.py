"""The demo: a small community that uses a server, and a check of what it left there."""

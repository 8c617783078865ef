"""PostgreSQL: how this program connects to it, and the server that it can start by itself."""

"""How a thread of ours connects to PostgreSQL: named after its purpose, noticing a dead server."""

from __future__ import annotations

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow


def open_connection(database_url: str, purpose: str) -> Connection[TupleRow]:
    """A connection in autocommit mode; raises OperationalError."""
    return psycopg.connect(
        database_url,
        autocommit=True,
        application_name=f"backlot {purpose}",
        connect_timeout=5,
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=4,
    )

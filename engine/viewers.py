"""Who a viewer without a name is: a key of the address and the client, made anew each day (UTC).

The salt of a day is deleted after it, so that no key can be traced back.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Callable
from datetime import UTC, date, datetime
from functools import partial
from typing import Any, NamedTuple

from psycopg import Connection

from infra.cache import SingleFlight
from infra.postgres.connection import open_connection

# The day is that of the database's clock, for every process.
MAKE = b"""
INSERT INTO backlot_viewer_salts (day, salt) VALUES ((now() AT TIME ZONE 'UTC')::date, %b)
ON CONFLICT DO NOTHING
"""
READ = b"""
SELECT day, salt FROM backlot_viewer_salts WHERE day = (now() AT TIME ZONE 'UTC')::date
"""
FORGET_SALTS = b"DELETE FROM backlot_viewer_salts WHERE day < (now() AT TIME ZONE 'UTC')::date"


class Salt(NamedTuple):
    """What the keys of one day (UTC) are made with."""

    day: date
    salt: bytes


class ViewerKeys:
    """Makes the keys of one process; to be used from one event loop."""

    def __init__(
        self, database_url: str, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._database_url = database_url
        self._clock = clock
        self._salt: Salt | None = None
        self._reading: SingleFlight[Salt] = SingleFlight()

    async def key(self, address: str, client: str) -> str:
        """Return the key of a viewer at this address with this client today, in hexadecimal.

        Raise psycopg.Error when the salt has to be read and the database is away.
        """
        if self._salt is None or self._salt.day != self._clock().date():
            read = partial(asyncio.to_thread, self._read)
            self._salt, _ = await self._reading.join("salt", read)
        return hmac.digest(self._salt.salt, f"{address}\n{client}".encode(), "sha256").hex()

    def _read(self) -> Salt:
        with open_connection(self._database_url, "viewers") as conn:
            return salt_of_today(conn)


def salt_of_today(conn: Connection[Any]) -> Salt:
    """Return the salt that all processes use today, made where there is none; delete older ones."""
    with conn.transaction():
        forget_salts(conn)
        conn.execute(MAKE, (secrets.token_bytes(32),))
        ((day, salt),) = conn.execute(READ).fetchall()
    return Salt(day, salt)


def forget_salts(conn: Connection[Any]) -> int:
    """Delete the salts of the days that are over; return how many."""
    return conn.execute(FORGET_SALTS).rowcount

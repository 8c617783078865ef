"""Keys of viewers who have no name: they tell one from another, and say nothing of either.

A key is a hash of a viewer's address and client, keyed with the salt of the day (UTC). All
processes share that salt; once its day is over it is deleted, and nobody can tell any more whose
keys those were. Addresses are not stored anywhere.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from psycopg import Connection

from infra.cache import SingleFlight
from infra.connecting import open_connection

SALT_BYTES = 32

# The day is that of the database's clock, for every process.
MAKE = b"""
INSERT INTO backlot_viewer_salts (day, salt) VALUES ((now() AT TIME ZONE 'UTC')::date, %b)
ON CONFLICT DO NOTHING
"""
READ = b"""
SELECT day, salt FROM backlot_viewer_salts WHERE day = (now() AT TIME ZONE 'UTC')::date
"""
FORGET = b"DELETE FROM backlot_viewer_salts WHERE day < (now() AT TIME ZONE 'UTC')::date"


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
        """The key of whoever comes from this address with this client today, in hexadecimal.

        Raises psycopg.Error when the salt has to be read and the database is away.
        """
        if self._salt is None or self._salt.day != self._clock().date():
            self._salt, _ = await self._reading.join("salt", self._read)
        return hmac.digest(self._salt.salt, f"{address}\n{client}".encode(), "sha256").hex()

    async def _read(self) -> Salt:
        return await asyncio.to_thread(self._read_now)

    def _read_now(self) -> Salt:
        with open_connection(self._database_url, "viewers") as conn:
            return salt_of_today(conn)


def salt_of_today(conn: Connection[Any]) -> Salt:
    """The salt that all processes use today, made if nobody has yet; those before it are gone."""
    with conn.transaction():
        forget_salts(conn)
        conn.execute(MAKE, (secrets.token_bytes(SALT_BYTES),))
        ((day, salt),) = conn.execute(READ).fetchall()
    return Salt(day, salt)


def forget_salts(conn: Connection[Any]) -> int:
    """Delete the salts of the days that are over; returns how many."""
    return conn.execute(FORGET).rowcount

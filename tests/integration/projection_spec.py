"""given(events).when(events).then(table, rows): what a read model makes of a log, as whole tables.

Each read model is there once for every size of batch, and what is expected holds for all of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, Self, TypeVar

import anyio
from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier

from domain.model import Aggregate
from engine.log import Recorded
from engine.projection import Projection, RangeProjection
from tests.integration.projection_support import Writer

P = TypeVar("P", bound=Projection)

BATCHES = (1, 2, 3, 1000)
EVENTS = """
SELECT notification_id, originator_id, originator_version, topic, state FROM backlot_events
WHERE notification_id > %s ORDER BY notification_id
"""


class ProjectionSpec(Generic[P]):
    """The copies of one read model in a database, and the log that they follow."""

    def __init__(self, conn: Connection[TupleRow], writer: Writer, projection: type[P]) -> None:
        self._conn, self._writer, self._applied = conn, writer, 0
        self._copies = {size: projection(f"{projection.name}_by_{size}") for size in BATCHES}
        for copy in self._copies.values():
            conn.execute(SQL("CREATE SCHEMA {}").format(Identifier(copy.schema)))
            conn.execute(copy.sql(copy.tables))

    def given(self, *aggregates: Aggregate) -> Self:
        """Record what these have decided, and apply whatever the log has gained, also before."""
        if any(aggregate.pending_events for aggregate in aggregates):
            self._writer.save(*aggregates)
        found = self._conn.execute(EVENTS.encode(), (self._applied,)).fetchall()
        for size, copy in self._copies.items():
            for first in range(0, len(found), size):
                self._apply(copy, found[first : first + size])
        self._applied = self._writer.head
        return self

    when = given

    def then(self, table: str, *rows: tuple[Any, ...], columns: str = "*") -> Self:
        """In every copy, the table has exactly these rows, in whatever order."""
        for copy in self._copies.values():
            query = SQL("SELECT {} FROM {}").format(
                SQL(columns),
                Identifier(copy.schema, table),
            )
            found = self._conn.execute(query).fetchall()
            assert sorted(found, key=repr) == sorted(rows, key=repr), f"{copy.schema}.{table}"
        return self

    def asked(self, query: Callable[[P, AsyncConnection[Any]], Awaitable[None]]) -> None:
        """Have the query ask every copy; it checks the answers itself."""

        async def ask() -> None:
            url = self._conn.info.dsn
            async with await AsyncConnection.connect(url, autocommit=True) as conn:
                for copy in self._copies.values():
                    await query(copy, conn)

        anyio.run(ask)

    def _apply(self, copy: P, batch: Sequence[tuple[Any, ...]]) -> None:
        with self._conn.transaction(), self._conn.cursor(binary=True) as cursor:
            if isinstance(copy, RangeProjection):
                copy.apply_range(batch[0][0] - 1, batch[-1][0], cursor)
                return
            read = (Recorded(at, self._writer.mapper.decode(*event)) for at, *event in batch)
            if wanted := [each for each in read if type(each.event) in copy.events]:
                copy.apply_all(wanted, cursor)

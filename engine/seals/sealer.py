"""Seals the log block by block, one process at a time, without a writer ever waiting for it.

PostgreSQL computes the leaves where the bytes are; hashing here would take this process's
interpreter from the writers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise

import psycopg
import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.event_store import EVENTS
from engine.seals import chain
from engine.seals.chain import HASH_BYTES, LEAF, NO_SEAL, Seal, seal_hash
from engine.seals.proofs import AnchorsUnusable, FileAnchors, SealKey
from infra.advisory_locks import Lock, try_lock
from infra.errors import OperatorError
from infra.metrics import counter, gauge

log = structlog.get_logger(__name__)

SEALS_AT_ONCE = 50

BLOCK = f"""
SELECT count(*), min(position), max(position), string_agg(leaf, ''::bytea ORDER BY position)
FROM (SELECT notification_id AS position, {LEAF} AS leaf FROM {EVENTS}
      WHERE notification_id > %s ORDER BY notification_id LIMIT %s) AS e
""".encode()
POSITIONS = f"""
SELECT notification_id FROM {EVENTS}
WHERE notification_id > %s ORDER BY notification_id LIMIT %s
""".encode()

SEALS = counter("backlot_seals", "Seals made over blocks of the event log.")
SEAL_POSITION = gauge(
    "backlot_seal_position",
    "Position up to which the event log is sealed, as the process that seals it knows it.",
)
SEAL_LAG_EVENTS = gauge(
    "backlot_seal_lag_events", "Positions between the end of the event log and the newest seal."
)
SEAL_FAILURES = counter(
    "backlot_seal_failures",
    "Times that a seal could not be made or anchored (database, log, anchoring, other).",
    ("step",),
)


class LogBroken(OperatorError):
    """The log has a gap or a second event at a position: it was changed behind our back."""


class Sealer:
    """Competes for the right to seal, and seals while it has it.

    The connection that writes the seals is the one that holds the lock, so a sealer that lost
    the lock can't write.
    """

    def __init__(
        self,
        database_url: str,
        *,
        block_events: int,
        block_seconds: float,
        key: SealKey | None = None,
        anchors: FileAnchors | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A block closes at `block_events`, or once its first event waited `block_seconds`."""
        self._database_url = database_url
        self._block_events, self._block_seconds = block_events, block_seconds
        self._key, self._anchors, self._clock = key, anchors, clock
        self._conn: Connection[TupleRow] | None = None
        self._anchored: int | None = None
        self._waiting_since: float | None = None

    def turn(self) -> int:
        """Seal what is due, up to 50 blocks, anchor it, and return the number of seals made.

        It is 0 while another process is the sealer. Raise psycopg.Error when the database is away,
        and LogBroken where the log is no longer whole; what is before that place is sealed.
        """
        try:
            conn = self._acquire()
            return 0 if conn is None else self._seal_and_anchor(conn)
        except psycopg.Error:
            self.close()
            raise

    def close(self) -> None:
        """Let another process be the sealer; the next turn competes again."""
        if self._conn is not None:
            self._conn.close()
            log.info("sealing_ended")
        self._conn = self._anchored = self._waiting_since = None

    def _acquire(self) -> Connection[TupleRow] | None:
        if self._conn is not None:
            return self._conn
        conn = chain.connect(self._database_url, "sealing")
        if not try_lock(conn, Lock.SEALING):
            conn.close()
            return None
        log.info("sealing_began", key_id=self._key.key_id if self._key else None)
        self._conn = conn
        return conn

    def _seal_and_anchor(self, conn: Connection[TupleRow]) -> int:
        last = chain.last_seal(conn)
        made = 0
        try:
            while made < SEALS_AT_ONCE and (size := self._due(conn, last)):
                last = self._seal(conn, last, size)
                made += 1
        finally:
            self._anchor(conn, last)
        return made

    def _due(self, conn: Connection[TupleRow], last: Seal | None) -> int:
        """Return how many events the next block may have; 0 when none is due."""
        sealed = last.last if last else 0
        lag = chain.head(conn) - sealed
        SEAL_POSITION.set(sealed)
        SEAL_LAG_EVENTS.set(lag)
        if lag <= 0:
            self._waiting_since = None
            return 0
        if self._waiting_since is None:
            self._waiting_since = self._clock()
        waited = self._clock() - self._waiting_since
        if lag < self._block_events and waited < self._block_seconds:
            return 0
        return min(lag, self._block_events)

    def _seal(self, conn: Connection[TupleRow], last: Seal | None, size: int) -> Seal:
        first, until, leaves = _block(conn, last.last if last else 0, size)
        previous = last.hash if last else NO_SEAL
        digest = seal_hash(previous, first, until, leaves)
        seal = Seal(
            number=last.number + 1 if last else 1,
            first=first,
            last=until,
            leaves=leaves,
            hash=digest,
            previous=previous,
            signature=self._key.sign(digest) if self._key else None,
            key_id=self._key.key_id if self._key else None,
            sealed_at=datetime.now(UTC),
        )
        chain.insert_seal(conn, seal)
        self._waiting_since = None
        SEALS.inc()
        log.debug("sealed", number=seal.number, first=first, last=until)
        return seal

    def _anchor(self, conn: Connection[TupleRow], last: Seal | None) -> None:
        """Write down every seal that has no anchor yet; a failure never stops the sealing."""
        if self._anchors is None or last is None or (self._anchored or 0) >= last.number:
            return
        try:
            if self._anchored is None:
                self._anchored = self._anchors.last_number()
                if self._anchored > last.number:
                    # The log was restored or cut off, which a verification says from now on.
                    SEAL_FAILURES.labels("anchoring").inc()
                    log.error("anchors_ahead_of_seals", anchored=self._anchored, sealed=last.number)
            if self._anchored < last.number:
                self._anchors.append(chain.seals(conn, self._anchored, last.number))
                self._anchored = last.number
        except AnchorsUnusable as error:
            self._anchored = None
            SEAL_FAILURES.labels("anchoring").inc()
            log.warning("seals_not_anchored", error=str(error))


def _block(conn: Connection[TupleRow], after: int, size: int) -> tuple[int, int, bytes]:
    """Return the first and last position of the next block of `size` events, and its leaves."""
    count, first, last, leaves = _leaves(conn, after, size)
    if first == after + 1 and last == after + count and len(leaves) == count * HASH_BYTES:
        return first, last, leaves
    whole = _unbroken(conn, after, size)
    if not whole:
        raise LogBroken(
            f"the log is not whole at position {after + 1}: `backlot events verify` says more"
        )
    _, first, last, leaves = _leaves(conn, after, whole)
    return first, last, leaves


def _leaves(conn: Connection[TupleRow], after: int, size: int) -> TupleRow:
    """Return the number of the next events, their first and last position, and their leaves."""
    with conn.cursor(binary=True) as cursor:
        return cursor.execute(BLOCK, (after, size), prepare=True).fetchone() or (
            0,
            None,
            None,
            None,
        )


def _unbroken(conn: Connection[TupleRow], after: int, size: int) -> int:
    """Return how many events follow without a gap and without a second one at a position."""
    found = [row[0] for row in conn.execute(POSITIONS, (after, size + 1)).fetchall()]
    whole = 0
    for position, following in pairwise([*found, None]):
        if whole == size or position != after + whole + 1 or position == following:
            break
        whole += 1
    return whole

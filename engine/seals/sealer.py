"""Seals the log block by block, one process at a time, without a writer ever waiting for it.

PostgreSQL computes the leaves where the bytes are; hashing here would take this process's
interpreter from the writers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import psycopg
import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.event_store import EVENTS
from engine.seals import chain
from engine.seals.anchors import AnchorStore, Head, HeadFile, anchor_of
from engine.seals.chain import FORMAT, LEAF, NO_SEAL, Seal, seal_hash
from engine.seals.merkle import HASH_BYTES
from engine.seals.outside import SEAL_FAILURES, AnchorWriter, difference
from engine.seals.places import AnchorsUnusable
from engine.seals.proofs import SealKey
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


class LogBroken(OperatorError):
    """The log has a gap or a second event at a position: it was changed behind our back."""


class LogRewritten(OperatorError):
    """The seals in the database are not those that are known outside it: nothing is sealed."""


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
        head: HeadFile | None = None,
        anchors: Sequence[AnchorStore] = (),
        stamp: Callable[[Seal], bytes | None] = lambda seal: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A block closes at `block_events`, or once its first event waited `block_seconds`.

        `stamp` returns the time stamp of a seal for its anchors, None where none is due.
        """
        self._database_url = database_url
        self._block_events, self._block_seconds = block_events, block_seconds
        self._key, self._clock = key, clock
        self._head = head
        self._writers = [AnchorWriter(store, clock, stamp) for store in anchors]
        self._conn: Connection[TupleRow] | None = None
        self._last: Seal | None = None
        self._peaks = b""
        self._confirmed = False
        # The head as it was last read or written: another one is an operator's.
        self._kept: Head | None = None
        self._waiting_since: float | None = None
        # The log's last position, as far as this turn has seen.
        self._end = 0

    def turn(self) -> int:
        """Seal what is due, up to 50 blocks, anchor it, and return the number of seals made.

        It is 0 while another process is the sealer. Raise psycopg.Error when the database is away,
        LogBroken where the log is no longer whole (what is before that place is sealed), and
        LogRewritten where the seals are not those that are known outside the database.
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
        self._conn = self._waiting_since = None
        self._confirmed = False

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
        self._confirm(conn)
        made = self._end = 0
        try:
            while made < SEALS_AT_ONCE and (size := self._due(conn, self._last)):
                self._seal(conn, size)
                made += 1
        finally:
            if self._last is not None:
                self._keep(self._last)
                self._anchor(conn, self._last)
        return made

    def _confirm(self, conn: Connection[TupleRow]) -> None:
        """Raise LogRewritten unless the newest seal is the one that is known outside.

        What this process knows is outside the database, too. As long as that is the newest one
        there, no more is compared than the anchors that stand in files.
        """
        known = None if self._last is None else (self._last.number, self._last.hash)
        same = self._confirmed and chain.tip(conn) == known
        if not same:
            # Until all of it was compared, nothing is.
            self._confirmed = False
            for writer in self._writers:
                writer.forget()
        found = [] if same else self._differences(conn)
        for writer in self._writers:
            try:
                floor = self._kept.anchored.get(writer.store.name, 0) if self._kept else 0
                found += writer.differences(conn, floor)
            except AnchorsUnusable as error:
                # What is not there can't be compared; it is as soon as it is back.
                _tell_unusable("anchoring", "seals_not_anchored", error)
        if found:
            self._confirmed = False
            raise LogRewritten("; ".join(found))
        if not same:
            self._last = chain.last_seal(conn)
            hashes = chain.seal_hashes(conn, self._last.number if self._last else 0)
            self._peaks = chain.peaks_after(self._last, hashes)
            self._confirmed = True

    def _differences(self, conn: Connection[TupleRow]) -> list[str]:
        """Return how the newest seal differs from the head, and from what this process knows."""
        found = []
        if self._head is not None:
            try:
                head = self._head.read()
            except AnchorsUnusable as error:
                return [f"the head in the data folder is of no use: {error}"]
            if head is None and self._kept is not None:
                return [f"the head in the data folder is gone: {self._head.path}"]
            if head != self._kept:
                self._kept, self._last = head, None
            if head is not None:
                found = difference(conn, head.seal, str(self._head.path))
        if not found and self._last is not None:
            found = difference(conn, anchor_of(self._last), "this process")
        return found

    def _due(self, conn: Connection[TupleRow], last: Seal | None) -> int:
        """Return how many events the next block may have; 0 when none is due.

        Raise LogRewritten where the log is shorter than what is sealed.
        """
        sealed = last.last if last else 0
        if self._end - sealed < self._block_events:
            self._end = chain.head(conn)
        lag = self._end - sealed
        SEAL_POSITION.set(sealed)
        SEAL_LAG_EVENTS.set(lag)
        if lag < 0:
            raise LogRewritten(
                f"the log ends with position {sealed + lag}, and is sealed up to {sealed}: "
                "events were removed"
            )
        if lag == 0:
            self._waiting_since = None
            return 0
        if self._waiting_since is None:
            self._waiting_since = self._clock()
        waited = self._clock() - self._waiting_since
        if lag < self._block_events and waited < self._block_seconds:
            return 0
        return min(lag, self._block_events)

    def _seal(self, conn: Connection[TupleRow], size: int) -> None:
        seal = make_seal(conn, self._last, size, self._key, self._peaks)
        if not chain.insert_seal(conn, seal):
            self._confirmed = False
            raise LogRewritten(f"seal {seal.number - 1} was changed or removed a moment ago")
        self._last, self._peaks = seal, chain.peaks_after(seal)
        self._waiting_since = None
        SEALS.inc()
        log.debug("sealed", number=seal.number, first=seal.first, last=seal.last)

    def _keep(self, last: Seal) -> None:
        """Write the newest seal down as the head; a failure never stops the sealing."""
        # What is anchored in this turn is written here with the next one.
        anchored = {writer.store.name: writer.number for writer in self._writers}
        head = Head(anchor_of(last), anchored)
        if self._head is None or self._kept == head:
            return
        if self._kept is None:
            log.info("seal_head_begun", number=last.number)
        try:
            self._head.write(head)
            self._kept = head
        except AnchorsUnusable as error:
            _tell_unusable("head", "seal_head_not_kept", error)

    def _anchor(self, conn: Connection[TupleRow], last: Seal) -> None:
        """Write down every seal that has no anchor yet; a failure never stops the sealing."""
        for writer in self._writers:
            try:
                writer.write(conn, last)
            except AnchorsUnusable as error:
                _tell_unusable("anchoring", "seals_not_anchored", error)


def make_seal(
    conn: Connection[TupleRow],
    before: Seal | None,
    size: int,
    key: SealKey | None,
    peaks: bytes,
    *,
    follows: bytes = NO_SEAL,
) -> Seal:
    """Return the seal over the next `size` events, or as many as follow without a gap.

    `peaks` are those of the tree over all seals before it; the first seal of a log `follows` the
    last one of the log that it was rewritten from. Raise LogBroken.
    """
    first, until, leaves = _block(conn, before.last if before else 0, size)
    seal = Seal(
        number=before.number + 1 if before else 1,
        first=first,
        last=until,
        leaves=leaves,
        hash=NO_SEAL,
        previous=before.hash if before else follows,
        signature=None,
        key_id=key.key_id if key else None,
        sealed_at=datetime.now(UTC),
        format=FORMAT,
        peaks=peaks,
    )
    digest = seal_hash(seal)
    return replace(seal, hash=digest, signature=key.sign(digest) if key else None)


def _tell_unusable(step: str, event: str, error: AnchorsUnusable) -> None:
    SEAL_FAILURES.labels(step).inc()
    log.warning(event, error=str(error))


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

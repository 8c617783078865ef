"""What tests of the seals and of the archive share: a log with known events, seals over it."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID, uuid4

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.log import MAPPER
from engine.seals.anchors import FileAnchors
from engine.seals.chain import (
    COLUMNS,
    NO_SEAL,
    Seal,
    connect,
    leaf,
    peaks_after,
    seal_hash,
    seals,
)
from engine.seals.outside import Outside
from engine.seals.proofs import SealKey
from engine.seals.report import Report
from engine.seals.sealer import Sealer
from engine.seals.verification import rows_between, verify_database
from tests.integration.event_log import tables_made
from tests.integration.projection_support import Writer

BLOCK = 10
ALL = ", ".join(f"{name} = %s" for name in COLUMNS.split(", ") if name != "number")
TOPICS = MAPPER.topics


def new_key() -> SealKey:
    return SealKey(Ed25519PrivateKey.generate())


def anchored(path: Path) -> Outside:
    """What is known outside is a file of anchors that has to be there."""
    return Outside(anchors=[FileAnchors(path, required=True)])


def make_log(database_url: str, events: int) -> None:
    """So many more real events: a video, its likes, and comments in odd letters."""
    writer = Writer(database_url)
    try:
        until = (writer.recorder.max_notification_id() or 0) + events
        video = writer.video(title="Déjà vu 🎬").id if events > 1 else uuid4()
        while writer.head < until:
            left = until - writer.head
            if left % 7 == 0:
                writer.comment(video, content=f'Nº {left}: ¡qué bonito! \\ " \u2028 🌧')
            else:
                writer.like(video, f"viewer-{uuid4()}")
    finally:
        writer.close()


def install(database_url: str) -> None:
    """Make the tables of the event store and of the seals."""
    tables_made(database_url)


def sealer(database_url: str, **options: Any) -> Sealer:
    """Seals whatever is there at each turn, in blocks of ten."""
    return Sealer(database_url, **{"block_events": BLOCK, "block_seconds": 0.0, **options})


def seal_all(database_url: str, **options: Any) -> int:
    """Seal all that is there; how many seals it took."""
    install(database_url)
    working = sealer(database_url, **options)
    made = 0
    try:
        while more := working.turn():
            made += more
    finally:
        working.close()
    return made


def seal_anew(database_url: str) -> None:
    """Recompute every seal over the events as they are now, as a forger without a key does."""
    with connect(database_url, "test") as conn:
        before: Seal | None = None
        for seal in list(seals(conn, 0, 1_000)):
            its_rows = rows_between(conn, seal.first - 1, seal.last)
            forged = replace(
                seal,
                leaves=b"".join(map(leaf, its_rows)),
                previous=before.hash if before else NO_SEAL,
                peaks=peaks_after(before),
            )
            before = replace(forged, hash=seal_hash(forged))
            number, *others = astuple(before)
            statement = f"UPDATE backlot_seals SET {ALL} WHERE number = %s"
            conn.execute(statement.encode(), (*others, number))


def verify(database_url: str, **options: Any) -> Report:
    with connect(database_url, "test") as conn:
        return verify_database(conn, **{"known_topics": TOPICS, **options})


def change(database_url: str, statement: LiteralString, *values: object) -> None:
    """Do something to the database behind everybody's back; it has to hit something."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        assert conn.execute(statement, values).rowcount != 0


def place_of(database_url: str, position: int) -> tuple[UUID, int]:
    """The stream and version of the event at a position."""
    with psycopg.connect(database_url) as conn:
        row = conn.execute(
            "SELECT originator_id, originator_version FROM backlot_events "
            "WHERE notification_id = %s",
            (position,),
        ).fetchone()
    assert row is not None
    return row[0], row[1]

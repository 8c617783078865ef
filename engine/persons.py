"""Persons: a random pseudonym stands for each in all that is recorded, and each has a key.

The edge of the program turns user ids into pseudonyms, and back where it answers. One table says
who is who; there also lies the key that a person's texts are encrypted with. Forgetting a person
destroys the name and the key, so that what is recorded names nobody and can't be read.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Set
from datetime import datetime
from math import inf
from threading import Lock
from time import monotonic
from typing import Any, NamedTuple

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg import Connection
from psycopg.errors import ForeignKeyViolation

from domain.errors import Forgotten
from domain.model import FORGOTTEN, ActorKind, actor_kind
from engine.personal_data import Left, PersonalTable
from engine.wrapping_keys import (
    KeyDamaged,
    WrappedKey,
    WrappingKeys,
    load_wrapping_keys,
    webhook_key,
)
from infra.key_encryption import KEY_BYTES, KeyEncryption, decrypt, encrypt
from infra.postgres.connection import SHORT_WORK, Limits, ThreadPool, thread_pool
from infra.pseudonyms import new_pseudonym

log = structlog.get_logger(__name__)

CONNECTIONS = 2
REMEMBER = 50_000
REMEMBER_SECONDS = 60.0
"""For so long a process may go on with a key or a name that another has destroyed."""
NAME = b"user id"
TICKETS = b"backlot live tickets"

FIND = b"""
SELECT pseudonym, fenced_at, forgotten_at, key, wrapping_key, name
FROM public.backlot_persons WHERE lookup = %s
"""
IS_FORMER = b"SELECT FROM public.backlot_former_names WHERE name = %s"
FORMER = b"SELECT name FROM public.backlot_former_names WHERE name = ANY (%s)"
MAKE = b"""
INSERT INTO public.backlot_persons (pseudonym, lookup, name, key, wrapping_key)
VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
"""
KEYS = b"""
SELECT pseudonym, key, wrapping_key, name FROM public.backlot_persons WHERE pseudonym = ANY (%s)
"""
# With the row by which the erasure is found (engine/erasures.py).
FENCE = b"""
WITH fenced AS (
    UPDATE public.backlot_persons SET fenced_at = coalesce(fenced_at, now()) WHERE pseudonym = %s
    RETURNING pseudonym, fenced_at),
begun AS (
    INSERT INTO public.backlot_erasures (pseudonym) SELECT pseudonym FROM fenced
    ON CONFLICT DO NOTHING)
SELECT fenced_at FROM fenced
"""
ALL_FORGOTTEN = b"SELECT pseudonym FROM public.backlot_persons WHERE forgotten_at IS NOT NULL"
DESTROY = b"""
UPDATE public.backlot_persons
SET name = NULL, key = NULL, wrapping_key = NULL, forgotten_at = coalesce(forgotten_at, now())
WHERE pseudonym = %s
"""
FORGET_FORMER = b"DELETE FROM public.backlot_former_names WHERE name = %s"


PERSONAL = (
    PersonalTable(
        name="persons",
        holds="which pseudonym stands for a user, and the key of what they wrote, both encrypted",
        kept="until the user is forgotten",
        table="public.backlot_persons",
        columns=("pseudonym",),
        shown="pseudonym, fenced_at, forgotten_at",
        forget=Left("name and key are destroyed; a keyed hash of the name stays", for_good=True),
    ),
)


class KnownPerson(NamedTuple):
    """A user by the pseudonym; `fenced_at` is since when nothing is taken from them any more."""

    pseudonym: str
    fenced_at: datetime | None = None
    forgotten_at: datetime | None = None


class PersonRow(NamedTuple):
    """Somebody who is not forgotten, by the columns of the table."""

    pseudonym: str
    lookup: bytes
    name: bytes
    key: bytes
    wrapping_key: int


class Known(NamedTuple):
    """What was read of a pseudonym; without a cipher the key is destroyed, or it is nobody's."""

    cipher: AESGCM | None = None
    name: str | None = None
    is_person: bool = True
    is_damaged: bool = False


NOBODY = Known(is_person=False)
DESTROYED = Known()
DAMAGED = Known(is_damaged=True)


class Remembered:
    """What was read lately, bounded in number and time; safe to share between threads."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._values: OrderedDict[str, tuple[Known, float]] = OrderedDict()
        self._lock = Lock()

    def get(self, pseudonym: str) -> Known | None:
        entry = self._values.get(pseudonym)
        return entry[0] if entry is not None and entry[1] > monotonic() else None

    def put(self, pseudonym: str, known: Known) -> None:
        now = monotonic()
        with self._lock:
            self._values.pop(pseudonym, None)
            self._values[pseudonym] = known, now + self._seconds
            # The oldest come first. What is over must not stay: a cipher takes two kilobytes.
            while len(self._values) > self._most or self._oldest() <= now:
                self._values.popitem(last=False)

    def drop(self, pseudonym: str) -> None:
        with self._lock:
            self._values.pop(pseudonym, None)

    def _oldest(self) -> float:
        """Return when the next one is over."""
        return next((until for _, until in self._values.values()), inf)


class Persons:
    """The persons of one database; safe to share between threads, and with a child process.

    Methods may block: an event loop calls them in a thread. All raise psycopg.OperationalError when
    the database is away, and KeyEncryptionFailed when the wrapping keys can't be unwrapped.
    """

    def __init__(self, database_url: str, kek: KeyEncryption, limits: Limits = SHORT_WORK) -> None:
        self._given = database_url, kek, limits
        self._pool: ThreadPool | None = None
        self._wrapping: WrappingKeys | None = None
        self._ticket_key: bytes | None = None
        self._opening, self._loading = Lock(), Lock()
        self._remembered = Remembered(REMEMBER, REMEMBER_SECONDS)

    def __reduce__(self) -> tuple[Callable[..., Persons], tuple[Any, ...]]:
        return Persons, self._given

    @property
    def database_url(self) -> str:
        """The libpq URL of their database."""
        return self._given[0]

    def open(self) -> None:
        """Unwrap the wrapping keys, which are made in a new database; what a start does.

        Raise KeyEncryptionFailed where the key-encryption key is not the one of this database.
        """
        with self._connection() as conn:
            self._wrapping = load_wrapping_keys(conn, self._given[1], make=True)

    def close(self) -> None:
        """Close the connections; the next call opens others."""
        with self._opening:
            if self._pool is not None:
                self._pool.close()
                self._pool = None

    def admit(self, user_id: str) -> str:
        """Return the pseudonym of a user, made at their first request; raise Forgotten.

        Who is named in what older releases recorded keeps their user id, until that is rewritten.
        """
        found = self.look_up(user_id)
        if found is None:
            with self._connection() as conn:
                self._make(conn, new_pseudonym(), user_id)
            # Another process may have been first.
            return self.admit(user_id)
        if found.fenced_at is not None:
            raise Forgotten(Forgotten.TOLD)
        return found.pseudonym

    def find(self, user_id: str) -> str | None:
        """Return the pseudonym of a user; None of one who was never here, or was forgotten."""
        found = self.look_up(user_id)
        return None if found is None or found.fenced_at is not None else found.pseudonym

    def look_up(self, user_id: str) -> KnownPerson | None:
        """Return a user, forgotten or not; None of one who was never here.

        Raise KeyDamaged where the row was put under another user's name.
        """
        with self._connection() as conn:
            asked = (self._keys(conn).digest(user_id),)
            row = conn.execute(FIND, asked).fetchone()
            if row is None and conn.execute(IS_FORMER, (user_id,)).fetchone() is not None:
                self._make(conn, user_id, user_id)
                row = conn.execute(FIND, asked).fetchone()
            if row is None:
                return None
            person, kept = KnownPerson(*row[:3]), (row[0], *row[3:])
            # Who calls will soon write, or be named: no second question then.
            known = self._remembered.get(person.pseudonym) or self._take(conn, [kept])[0]
        if known.name not in (None, user_id):
            raise KeyDamaged(person.pseudonym)
        return person

    def recall(self, pseudonyms: Iterable[str]) -> dict[str, str] | None:
        """Return the names of so many where all are known without asking; never blocks.

        That of whoever was forgotten is FORGOTTEN; who is no person has none.
        """
        found = {each: self._recalled(each) for each in pseudonyms}
        known = {each: of for each, of in found.items() if of is not None}
        return _names(known) if len(known) == len(found) else None

    def names(self, pseudonyms: Iterable[str]) -> dict[str, str]:
        """Return the names of so many, as `recall` does."""
        return _names(self._known(pseudonyms))

    def cipher(self, person: str) -> AESGCM | None:
        """Return what a person's texts are encrypted with; None where the key is destroyed.

        Raise KeyError of somebody who is no person of this database, and KeyDamaged.
        """
        known = self._remembered.get(person) or self._known((person,))[person]
        if not known.is_person:
            raise KeyError(person)
        if known.is_damaged:
            raise KeyDamaged(person)
        return known.cipher

    def prepare(self, persons: Iterable[str]) -> None:
        """Read the keys and names of so many persons at once, as far as they are not known."""
        self._known(persons)

    def _recalled(self, person: str) -> Known | None:
        known = self._remembered.get(person)
        return NOBODY if known is None and actor_kind(person) is not ActorKind.USER else known

    def _known(self, persons: Iterable[str]) -> dict[str, Known]:
        """Return what is known of each, read where it was not."""
        found = {each: self._recalled(each) for each in persons}
        known = {each: of for each, of in found.items() if of is not None}
        if wanted := found.keys() - known.keys():
            known |= self._read(wanted)
        return known

    def _read(self, wanted: Set[str]) -> dict[str, Known]:
        # No text of PostgreSQL's has a NUL, so that nobody has such a name.
        asked = {each for each in wanted if "\0" not in each}
        with self._connection() as conn:
            rows = _rows(conn, asked)
            if unknown := asked - {row[0] for row in rows}:
                former = [name for (name,) in conn.execute(FORMER, (sorted(unknown),)).fetchall()]
                for name in former:
                    self._make(conn, name, name)
                rows += _rows(conn, former)
            read = dict(zip((row[0] for row in rows), self._take(conn, rows), strict=True))
        for nobody in wanted - read.keys():
            read[nobody] = NOBODY
            self._remembered.put(nobody, NOBODY)
        return read

    def fence(self, pseudonym: str) -> datetime:
        """Take nothing more from a person, from now on; return since when. Raise KeyError."""
        with self._connection() as conn:
            row = conn.execute(FENCE, (pseudonym,)).fetchone()
        if row is None:
            raise KeyError(pseudonym)
        since: datetime = row[0]
        return since

    def destroy(self, pseudonym: str) -> None:
        """Destroy the name and the key of a person who is fenced; twice is once."""
        with self._connection() as conn, conn.transaction():
            conn.execute(DESTROY, (pseudonym,))
            conn.execute(FORGET_FORMER, (pseudonym,))
        self.drop(pseudonym)

    def drop(self, pseudonym: str) -> None:
        """Know nothing more of a person in this process, until it is read again."""
        self._remembered.drop(pseudonym)

    def webhook_key(self) -> bytes:
        """Return the key from which secrets of webhooks are derived; see engine.wrapping_keys."""
        with self._connection() as conn:
            return webhook_key(conn, self._given[1])

    def ticket_key(self) -> bytes:
        """Return the key that tickets are sealed with: derived from that, and remembered."""
        if self._ticket_key is None:
            self._ticket_key = hmac.digest(self.webhook_key(), TICKETS, "sha256")
        return self._ticket_key

    def _take(self, conn: Connection[Any], rows: list[Any]) -> list[Known]:
        """Return what rows say, in their order, and remember it."""
        if not rows:
            # Nobody's key is needed, also where none can be had.
            return []
        keys = self._keys(conn)
        while any(number is not None and number not in keys for _, _, number, _ in rows):
            # Others rotate the wrapping keys: what was read may be as old as what is known here.
            keys = self._load(conn, keys)
            fresh = {row[0]: row for row in _rows(conn, [row[0] for row in rows])}
            rows = [fresh[row[0]] for row in rows]
        found = [_unwrapped(keys, *row) for row in rows]
        for (pseudonym, *_), known in zip(rows, found, strict=True):
            self._remembered.put(pseudonym, known)
        return found

    def _make(self, conn: Connection[Any], pseudonym: str, user_id: str) -> None:
        """Make a person, unless another one has done so."""
        keys = self._keys(conn)
        while True:
            try:
                conn.execute(MAKE, new_person(keys, pseudonym, user_id)[1])
            except ForeignKeyViolation:
                # Others have rotated the wrapping keys, and that one is removed.
                keys = self._load(conn, keys)
            else:
                return

    def _keys(self, conn: Connection[Any]) -> WrappingKeys:
        return self._wrapping or self._load(conn, None)

    def _load(self, conn: Connection[Any], outdated: WrappingKeys | None) -> WrappingKeys:
        """Return other wrapping keys than these, read once for all threads that miss them."""
        with self._loading:
            if self._wrapping is None or self._wrapping is outdated:
                self._wrapping = load_wrapping_keys(conn, self._given[1])
            return self._wrapping

    def _connection(self) -> Any:
        with self._opening:
            if self._pool is None:
                url, _, limits = self._given
                self._pool = thread_pool(url, "persons", limits, size=CONNECTIONS)
                self._pool.open()
            return self._pool.connection()


def new_person(keys: WrappingKeys, pseudonym: str, user_id: str) -> tuple[bytes, PersonRow]:
    """Return the key of a person who is new, and their row."""
    key = secrets.token_bytes(KEY_BYTES)
    number, wrapped = keys.wrap(key, pseudonym)
    name = encrypt(key, user_id.encode(), NAME)
    return key, PersonRow(pseudonym, keys.digest(user_id), name, wrapped, number)


def _rows(conn: Connection[Any], persons: Iterable[str]) -> list[Any]:
    return conn.execute(KEYS, (sorted(persons),)).fetchall()


def _unwrapped(
    keys: WrappingKeys,
    pseudonym: str,
    wrapped: bytes | None,
    number: int | None,
    name: bytes | None,
) -> Known:
    if wrapped is None or number is None or name is None:
        return DESTROYED
    try:
        key = keys.unwrap(WrappedKey(number, wrapped), pseudonym)
        return Known(AESGCM(key), decrypt(key, name, NAME).decode())
    except (InvalidTag, ValueError):
        # One row that somebody changed must not keep anybody else from being read.
        log.error("person_key_damaged", person=pseudonym)
        return DAMAGED


def _names(known: Mapping[str, Known]) -> dict[str, str]:
    named = {each: of for each, of in known.items() if of.is_person and not of.is_damaged}
    return {each: of.name or FORGOTTEN for each, of in named.items()}


def forgotten(conn: Connection[Any]) -> list[str]:
    """Return the pseudonyms of all whose names and keys are destroyed; raise psycopg.Error."""
    return [pseudonym for (pseudonym,) in conn.execute(ALL_FORGOTTEN).fetchall()]

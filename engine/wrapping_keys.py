"""The wrapping keys of a database: one finds persons by name, others wrap persons' keys.

From one more the secrets of webhooks are derived.

They lie in the database, wrapped themselves by a key-encryption key that lies elsewhere, and are
unwrapped once for each process: so that key may be slow to ask, and changing it re-wraps a row.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

import structlog
from cryptography.exceptions import InvalidTag
from psycopg import Connection

from infra.advisory_locks import hold, job_lock
from infra.errors import OperatorError
from infra.key_encryption import (
    KEY_BYTES,
    KeyEncryption,
    KeyEncryptionFailed,
    WrongKey,
    decrypt,
    encrypt,
)

log = structlog.get_logger(__name__)

LOOKUP, PERSONS, WEBHOOKS = "lookup", "persons", "webhooks"
BATCH_PERSONS = 500
FIRST_START = "this database has no wrapping keys yet: start Backlot on it once"

READ = b"SELECT number, purpose, kek, wrapped FROM public.backlot_wrapping_keys ORDER BY number"
OF_PURPOSE = b"SELECT kek, wrapped FROM public.backlot_wrapping_keys WHERE purpose = %s"
LOCK = b"LOCK TABLE public.backlot_wrapping_keys IN SHARE ROW EXCLUSIVE MODE"
MAKE = b"INSERT INTO public.backlot_wrapping_keys (purpose, kek, wrapped) VALUES (%s, %s, %s)"
ARE_PERSONS = b"SELECT EXISTS (SELECT FROM public.backlot_persons)"
WRAP_ANEW = b"UPDATE public.backlot_wrapping_keys SET kek = %s, wrapped = %s WHERE number = %s"

WRAPPED_BY = b"""
SELECT pseudonym, wrapping_key, key FROM public.backlot_persons
WHERE wrapping_key = ANY (%s::int[]) AND pseudonym > %s ORDER BY pseudonym LIMIT %s FOR UPDATE
"""
# What the first pass has left: no order, so that it need not look at every person.
LEFT = b"""
SELECT pseudonym, wrapping_key, key FROM public.backlot_persons
WHERE wrapping_key = ANY (%s::int[]) LIMIT %s FOR UPDATE
"""
WRAP_PERSONS = b"""
UPDATE public.backlot_persons AS p SET wrapping_key = %s, key = w.key
FROM unnest(%s::text[], %s::bytea[]) AS w (pseudonym, key) WHERE p.pseudonym = w.pseudonym
"""
# Who inserts a person by one of these keys waits now, and finds that the key is gone.
LOCK_KEYS = b"SELECT FROM public.backlot_wrapping_keys WHERE number = ANY (%s::int[]) FOR UPDATE"
REMOVE = b"DELETE FROM public.backlot_wrapping_keys WHERE number = ANY (%s::int[])"

LOOK = b"""
SELECT number, purpose, kek, made_at,
       (SELECT count(*) FROM public.backlot_persons WHERE wrapping_key = number)
FROM public.backlot_wrapping_keys ORDER BY number
"""


class KeyDamaged(ValueError):
    """A person's key, or the name under it, was damaged in the database or put there by somebody.

    Restore the row, or forget the person.
    """

    def __init__(self, pseudonym: str) -> None:
        super().__init__(f"the key of person {pseudonym} can't be unwrapped: its row was changed")


class RotationElsewhere(OperatorError):
    """Another process changes the wrapping keys right now."""


class WrappedKey(NamedTuple):
    """A person's key as it is stored, and the number of the wrapping key that wrapped it."""

    wrapping_key: int
    wrapped: bytes


class WrappingKeys:
    """The unwrapped keys of one database; they do not change."""

    def __init__(self, lookup: bytes, persons: Mapping[int, bytes]) -> None:
        self._lookup = lookup
        self._persons = persons
        self.newest = max(persons)

    def __contains__(self, number: int) -> bool:
        return number in self._persons

    @property
    def outdated(self) -> list[int]:
        """The numbers of the keys that wrap persons' keys no more."""
        return sorted(self._persons.keys() - {self.newest})

    def digest(self, user_id: str) -> bytes:
        """Return what a person is found by: nobody without the key can confirm a name."""
        return hmac.digest(self._lookup, user_id.encode(), "sha256")

    def wrap(self, key: bytes, pseudonym: str) -> WrappedKey:
        """Return a person's key, wrapped by the newest key and bound to the person."""
        newest = self.newest
        return WrappedKey(newest, encrypt(self._persons[newest], key, pseudonym.encode()))

    def unwrap(self, wrapped: WrappedKey, pseudonym: str) -> bytes:
        """Return a person's key. Raise KeyDamaged where it is another one's, or no such key."""
        try:
            return decrypt(self._persons[wrapped.wrapping_key], wrapped.wrapped, pseudonym.encode())
        except (KeyError, InvalidTag, ValueError) as error:
            raise KeyDamaged(pseudonym) from error


def load_wrapping_keys(
    conn: Connection[Any], kek: KeyEncryption, *, make: bool = False
) -> WrappingKeys:
    """Return the keys of a database; with `make`, make them in a new one, and what wraps them.

    Raise KeyEncryptionFailed where there are none, or they can't be unwrapped: a new key-encryption
    key is never made beside old data. Raise psycopg.Error.
    """
    rows = conn.execute(READ).fetchall()
    if not rows and make:
        with conn.transaction():
            # Of several processes that start at once, the others wait, and find the keys of one.
            conn.execute(LOCK)
            rows = conn.execute(READ).fetchall() or _made(conn, kek)
    if not rows:
        raise KeyEncryptionFailed(FIRST_START)
    keys = {
        (purpose, number): _unwrapped(kek, bytes(wrapped), purpose, by)
        for number, purpose, by, wrapped in rows
    }
    lookup = next(key for (purpose, _), key in keys.items() if purpose == LOOKUP)
    return WrappingKeys(
        lookup, {number: key for (purpose, number), key in keys.items() if purpose == PERSONS}
    )


def webhook_key(conn: Connection[Any], kek: KeyEncryption) -> bytes:
    """Return the key from which secrets of webhooks are derived; made when it is first asked for.

    Raise KeyEncryptionFailed and psycopg.Error.
    """
    # Where the key-encryption key is another one than that of this database, nothing is made.
    load_wrapping_keys(conn, kek)
    with conn.transaction():
        rows = conn.execute(OF_PURPOSE, (WEBHOOKS,)).fetchall()
        if not rows:
            conn.execute(LOCK)
            rows = conn.execute(OF_PURPOSE, (WEBHOOKS,)).fetchall()
        if not rows:
            _add(conn, kek, WEBHOOKS)
            rows = conn.execute(OF_PURPOSE, (WEBHOOKS,)).fetchall()
    ((by, wrapped),) = rows
    return _unwrapped(kek, bytes(wrapped), WEBHOOKS, by)


def _made(conn: Connection[Any], kek: KeyEncryption) -> list[Any]:
    if (conn.execute(ARE_PERSONS).fetchone() or [True])[0]:
        raise KeyEncryptionFailed(
            "this database has persons and no wrapping keys: restore the table "
            "backlot_wrapping_keys from the backup that the persons are from"
        )
    kek.make()
    for purpose in (LOOKUP, PERSONS):
        _add(conn, kek, purpose)
    log.info("wrapping_keys_made", kek=kek.name)
    return conn.execute(READ).fetchall()


def _add(conn: Connection[Any], kek: KeyEncryption, purpose: str) -> None:
    wrapped = kek.wrap(secrets.token_bytes(KEY_BYTES), purpose)
    conn.execute(MAKE, (purpose, kek.name, wrapped))


def _unwrapped(kek: KeyEncryption, wrapped: bytes, purpose: str, by: str) -> bytes:
    try:
        return kek.unwrap(wrapped, purpose)
    except WrongKey as error:
        raise KeyEncryptionFailed(
            f"{error}, and this database's keys were wrapped by {by}: give that key to every "
            "process, such as by KEY_ENCRYPTION_KEY_FILE (see docs/operations.md)"
        ) from error


class Rotation(NamedTuple):
    """The newest wrapping key, whether it was made now, and what it took the place of."""

    newest: int
    begun: bool
    persons: int
    removed: list[int]


def rotate(conn: Connection[Any], kek: KeyEncryption) -> Rotation:
    """Wrap the keys of all persons by a new wrapping key, and remove the older ones.

    It may be killed at any moment: the next call goes on with what is begun. Others may make and
    forget persons meanwhile. `conn` is in autocommit mode. Raise RotationElsewhere,
    KeyEncryptionFailed, KeyDamaged, and psycopg.Error.
    """
    with hold(conn, job_lock("wrapping keys"), wait=False) as mine:
        if not mine:
            raise RotationElsewhere("another process rotates the wrapping keys: try again later")
        keys = load_wrapping_keys(conn, kek)
        begun = not keys.outdated
        if begun:
            _add(conn, kek, PERSONS)
            keys = load_wrapping_keys(conn, kek)
        persons = _rewrap_all(conn, keys) + _rewrap_left(conn, keys)
        with conn.transaction():
            conn.execute(LOCK_KEYS, (keys.outdated,))
            # Whom others have made meanwhile, by an older key.
            persons += _rewrap_left(conn, keys)
            conn.execute(REMOVE, (keys.outdated,))
    log.info("wrapping_keys_rotated", newest=keys.newest, persons=persons)
    return Rotation(keys.newest, begun, persons, keys.outdated)


def _rewrap_all(conn: Connection[Any], keys: WrappingKeys) -> int:
    """Wrap what older keys have wrapped by the newest, in the order of persons; return how many."""
    count, after = 0, ""
    while batch := _rewrap(conn, keys, WRAPPED_BY, keys.outdated, after, BATCH_PERSONS):
        count, after = count + len(batch), batch[-1]
    return count


def _rewrap_left(conn: Connection[Any], keys: WrappingKeys) -> int:
    """Wrap what older keys have wrapped by the newest, where few are left; return how many."""
    count = 0
    while batch := _rewrap(conn, keys, LEFT, keys.outdated, BATCH_PERSONS):
        count += len(batch)
    return count


def _rewrap(conn: Connection[Any], keys: WrappingKeys, query: bytes, *given: object) -> list[str]:
    """Wrap anew what the query finds, in one transaction; return whose keys these are."""
    with conn.transaction():
        rows = conn.execute(query, given).fetchall()
        wrapped = [
            keys.wrap(keys.unwrap(WrappedKey(number, bytes(key)), pseudonym), pseudonym).wrapped
            for pseudonym, number, key in rows
        ]
        pseudonyms = [pseudonym for pseudonym, _, _ in rows]
        conn.execute(WRAP_PERSONS, (keys.newest, pseudonyms, wrapped))
    return pseudonyms


class Rewrapped(NamedTuple):
    """By which key-encryption key how many wrapping keys are wrapped now, and by which before."""

    by: str
    keys: int
    before: list[str]


def rewrap(conn: Connection[Any], kek: KeyEncryption, former: KeyEncryption) -> Rewrapped:
    """Wrap the wrapping keys by the newest version of a key-encryption key, all or none.

    What that has not wrapped itself is unwrapped by the former one. Raise KeyEncryptionFailed, and
    psycopg.Error.
    """
    with conn.transaction():
        conn.execute(LOCK)
        rows = conn.execute(READ).fetchall()
        if not rows:
            raise KeyEncryptionFailed(FIRST_START)
        keys = [_either(kek, former, bytes(row[3]), row[1], row[2]) for row in rows]
        # Not before all is unwrapped: else a lost key would get a successor that fits nothing.
        kek.make()
        for (number, purpose, _, _), key in zip(rows, keys, strict=True):
            wrapped = kek.wrap(key, purpose)
            if kek.unwrap(wrapped, purpose) != key:
                raise KeyEncryptionFailed(f"{kek.name} does not give back what it has wrapped")
            conn.execute(WRAP_ANEW, (kek.name, wrapped, number))
    log.info("wrapping_keys_rewrapped", kek=kek.name, keys=len(keys))
    return Rewrapped(kek.name, len(keys), sorted({row[2] for row in rows}))


def _either(
    kek: KeyEncryption, former: KeyEncryption, wrapped: bytes, purpose: str, by: str
) -> bytes:
    try:
        return kek.unwrap(wrapped, purpose)
    except WrongKey:
        pass
    try:
        return former.unwrap(wrapped, purpose)
    except WrongKey as error:
        raise KeyEncryptionFailed(
            f"{error}, and this database's keys were wrapped by {by}: name that key, such as by "
            "OLD_KEY_ENCRYPTION_KEY_FILE"
        ) from error


class WrappingKeyStatus(NamedTuple):
    """A wrapping key, by which key-encryption key it is wrapped, and how many persons' it wraps."""

    number: int
    purpose: str
    by: str
    made_at: datetime
    persons: int


def look(conn: Connection[Any]) -> list[WrappingKeyStatus]:
    """Return the wrapping keys of a database, the oldest first; raise psycopg.Error."""
    return [WrappingKeyStatus(*row) for row in conn.execute(LOOK).fetchall()]

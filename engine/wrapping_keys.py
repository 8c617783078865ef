"""The wrapping keys of a database: one finds persons by name, the others wrap persons' keys.

They lie in the database, wrapped themselves by a key-encryption key that lies elsewhere, and are
unwrapped once for each process: so that key may be slow to ask, and changing it re-wraps a row.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

import structlog
from cryptography.exceptions import InvalidTag
from psycopg import Connection

from infra.key_encryption import KEY_BYTES, KeyEncryption, KeyEncryptionFailed, decrypt, encrypt

log = structlog.get_logger(__name__)

LOOKUP, PERSONS = "lookup", "persons"
READ = b"SELECT number, purpose, wrapped FROM public.backlot_wrapping_keys ORDER BY number"
LOCK = b"LOCK TABLE public.backlot_wrapping_keys IN SHARE ROW EXCLUSIVE MODE"
MAKE = b"INSERT INTO public.backlot_wrapping_keys (purpose, kek, wrapped) VALUES (%s, %s, %s)"


class WrappedKey(NamedTuple):
    """A person's key as it is stored, and the number of the wrapping key that wrapped it."""

    wrapping_key: int
    wrapped: bytes


class WrappingKeys:
    """The unwrapped keys of one database; they do not change."""

    def __init__(self, lookup: bytes, persons: Mapping[int, bytes]) -> None:
        self._lookup = lookup
        self._persons = persons
        self._newest = max(persons)

    def __contains__(self, number: int) -> bool:
        return number in self._persons

    def digest(self, user_id: str) -> bytes:
        """Return what a person is found by: nobody without the key can confirm a name."""
        return hmac.digest(self._lookup, user_id.encode(), "sha256")

    def wrap(self, key: bytes, pseudonym: str) -> WrappedKey:
        """Return a person's key, wrapped by the newest key and bound to the person."""
        newest = self._newest
        return WrappedKey(newest, encrypt(self._persons[newest], key, pseudonym.encode()))

    def unwrap(self, wrapped: WrappedKey, pseudonym: str) -> bytes:
        """Return a person's key. Raise KeyEncryptionFailed where the row is another one's."""
        try:
            return decrypt(self._persons[wrapped.wrapping_key], wrapped.wrapped, pseudonym.encode())
        except (KeyError, InvalidTag) as error:
            raise KeyEncryptionFailed(
                f"the key of person {pseudonym} can't be unwrapped: its row was damaged or changed"
            ) from error


def load_wrapping_keys(conn: Connection[Any], kek: KeyEncryption) -> WrappingKeys:
    """Return the keys of a database; make them, and the key-encryption key, where it has none yet.

    Raise KeyEncryptionFailed where they are there and can't be unwrapped: a new key-encryption key
    is never made beside old data. Raise psycopg.Error.
    """
    rows = conn.execute(READ).fetchall()
    if not rows:
        with conn.transaction():
            conn.execute(LOCK)
            rows = conn.execute(READ).fetchall()
            if not rows:
                kek.make()
                for purpose in (LOOKUP, PERSONS):
                    wrapped = kek.wrap(secrets.token_bytes(KEY_BYTES))
                    conn.execute(MAKE, (purpose, kek.name, wrapped))
                log.info("wrapping_keys_made", kek=kek.name)
                rows = conn.execute(READ).fetchall()
    keys = {(purpose, number): kek.unwrap(bytes(wrapped)) for number, purpose, wrapped in rows}
    lookup = next(key for (purpose, _), key in keys.items() if purpose == LOOKUP)
    return WrappingKeys(
        lookup, {number: key for (purpose, number), key in keys.items() if purpose == PERSONS}
    )

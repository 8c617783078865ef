"""What tests of persons and of their keys share."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from engine.persons import Persons
from infra.key_encryption import GivenKey, KeyEncryption

KEK = GivenKey(secrets.token_hex(32))


@contextmanager
def opened(database_url: str, kek: KeyEncryption = KEK) -> Iterator[Persons]:
    """Persons as one process has them, after its start."""
    persons = Persons(database_url, kek)
    try:
        persons.open()
        yield persons
    finally:
        persons.close()

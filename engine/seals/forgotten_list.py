"""Who was forgotten, as it is known outside the database: a restored backup must forget them again.

An entry is a line of JSON: number (from 1), person, at (RFC 3339), previous and hash. `person` is
the SHA-256 of a tag and the pseudonym, since users whom old logs name have their user ids as their
pseudonyms. `hash` is the SHA-256 of the entry before it, the number, the person and the time: an
entry can't be changed, nor removed from between others, without the next one showing it. A list
whose end is gone is shown by the database and by the lists in other places, which complete it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from engine.seals.chain import EPOCH
from engine.seals.merkle import HASH_BYTES
from engine.seals.places import AnchorsUnusable, LinePlace, PlacedLine

if TYPE_CHECKING:
    from engine.seals.proofs import Proofs

PERSON_TAG = b"backlot.person.v1\0"
ENTRY_TAG = b"backlot.forgotten.v1\0"
BEFORE_ALL = bytes(HASH_BYTES)
ATTEMPTS = 5

_ENTRY = Struct(">q32sq")


class ForgottenEntry(NamedTuple):
    """One line of a list; `person` has 32 bytes."""

    number: int
    person: bytes
    at: datetime
    previous: bytes
    hash: bytes

    def line(self) -> bytes:
        record = {
            "number": self.number,
            "person": self.person.hex(),
            "at": self.at,
            "previous": self.previous.hex(),
            "hash": self.hash.hex(),
        }
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)


def person_digest(pseudonym: str) -> bytes:
    """Return the 32 bytes that stand for a person."""
    return sha256(PERSON_TAG + pseudonym.encode()).digest()


class ForgottenList:
    """The list in one place; it only grows. Its methods raise AnchorsUnusable."""

    def __init__(self, place: LinePlace) -> None:
        self._place, self.name = place, place.name

    def read(self) -> dict[bytes, datetime]:
        """Return who was forgotten, each by the digest, and when."""
        return {entry.person: entry.at for entry in _checked(self._place.read())}

    def add(self, persons: Mapping[bytes, datetime]) -> int:
        """Write down those who are not there yet; return how many they were."""
        added = 0
        with self._place.held():
            # Where nobody is kept from appending, another one's entries may have come between.
            for _ in range(ATTEMPTS):
                entries = list(_checked(self._place.read()))
                there = {entry.person for entry in entries}
                missing = {each: at for each, at in persons.items() if each not in there}
                if not missing:
                    return added
                self._place.append(entry.line() for entry in _after(entries, missing))
                added = len(missing)
        raise AnchorsUnusable(f"{self.name} does not keep who was forgotten: others write there")


def record_forgotten(proofs: Proofs, pseudonym: str, at: datetime) -> None:
    """Write down in every place outside the database that a person is forgotten; twice is once.

    It is safe there when this returns. Blocks. Raise AnchorsUnusable where a place does not answer:
    try again later.
    """
    for each in proofs.outside.forgotten:
        each.add({person_digest(pseudonym): at})


def _after(
    entries: Sequence[ForgottenEntry], persons: Mapping[bytes, datetime]
) -> Iterator[ForgottenEntry]:
    before = entries[-1] if entries else None
    for person, at in persons.items():
        number, previous = (before.number + 1, before.hash) if before else (1, BEFORE_ALL)
        before = ForgottenEntry(number, person, at, previous, _hash(number, person, at, previous))
        yield before


def _checked(placed: Iterable[PlacedLine]) -> Iterator[ForgottenEntry]:
    """Yield the entries that lines are; raise AnchorsUnusable for one that does not follow."""
    number, previous = 0, BEFORE_ALL
    for where, line in placed:
        entry = _parsed(where, line)
        if (entry.number, entry.previous) != (number + 1, previous) or entry.hash != _hash(
            *entry[:4]
        ):
            raise AnchorsUnusable(
                f"{where}: entry {entry.number} of who was forgotten does not follow the one "
                "before it: the list was changed"
            )
        number, previous = entry.number, entry.hash
        yield entry


def _parsed(where: str, line: bytes) -> ForgottenEntry:
    try:
        record: dict[str, Any] = orjson.loads(line)
        person, previous, own = (
            bytes.fromhex(record[name]) for name in ("person", "previous", "hash")
        )
        at = datetime.fromisoformat(record["at"]).astimezone(UTC)
        return ForgottenEntry(int(record["number"]), person, at, previous, own)
    except (ValueError, KeyError, TypeError) as error:
        raise AnchorsUnusable(f"{where} is no entry of who was forgotten: {error!r}") from error


def _hash(number: int, person: bytes, at: datetime, previous: bytes) -> bytes:
    moment = (at - EPOCH) // timedelta(microseconds=1)
    return sha256(ENTRY_TAG + previous + _ENTRY.pack(number, person, moment)).digest()

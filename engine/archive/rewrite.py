"""Rewrites the log of an older release into a new store: pseudonyms and encrypted texts.

Positions, times and versions stay. A stream whose id is made from persons gets the id that their
pseudonyms make, and whatever names one of its events as its cause or its conversation follows. The
first seal of the new log follows the last one of the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg import Connection
from psycopg.rows import TupleRow

from domain.model import EVENTS as EVENT_CLASSES
from engine.archive import keys as key_file
from engine.archive.keys import keys_path, read_keys, store_rows
from engine.archive.lines import batches
from engine.archive.persons import has_texts, named_in
from engine.archive.transfer import ImportRefused, filled, finished, whole_log, write_items
from engine.log import SEALED_BYTES, EventMapper, event_id
from engine.persons import new_person
from engine.seals.chain import StoredRow, insert_seal
from engine.seals.proofs import NO_PROOFS, Proofs, SealKey
from engine.seals.report import Report
from engine.seals.sealer import make_seal
from engine.wrapping_keys import KeyDamaged, WrappedKey, WrappingKeys, load_wrapping_keys
from infra.key_encryption import KeyEncryption
from infra.pseudonyms import new_pseudonym

ROWS_AT_ONCE = 2_000
UUID_TEXT = 36

make_cipher = lru_cache(maxsize=10_000)(AESGCM)


class RewrittenPerson(NamedTuple):
    """Somebody's pseudonym in the new log; without a key, nobody reads what they wrote."""

    pseudonym: str
    key: bytes | None


class BookCiphers:
    """The keys of persons, by what one of the two logs calls them."""

    def __init__(self, persons: Mapping[str, RewrittenPerson]) -> None:
        self._persons = persons

    def cipher(self, person: str) -> AESGCM | None:
        key = self._persons[person].key
        return None if key is None else make_cipher(key)

    def prepare(self, persons: object) -> None:
        """All are at hand."""


class PersonBook:
    """Who is who in the new log: those whom the old database knew, and whom its log names beside.

    Who has a random pseudonym keeps it. Who was forgotten gets another one: the old one may be a
    user id. All is stored within the caller's transaction; methods raise psycopg.Error.
    """

    def __init__(self, conn: Connection[TupleRow], wrapping: WrappingKeys) -> None:
        self._conn, self._wrapping = conn, wrapping
        self._unstored: list[key_file.Row] = []
        self.by_name: dict[str, RewrittenPerson] = {}
        self.by_pseudonym: dict[str, RewrittenPerson] = {}

    def take(self, row: key_file.Row, *, is_former: bool) -> None:
        """Somebody whom the old database knew; `is_former`: by a user id."""
        name, wrapped, key = row["pseudonym"], row["key"], None
        if wrapped is not None:
            known = WrappedKey(row["wrapping_key"], bytes.fromhex(wrapped[2:]))
            try:
                key = self._wrapping.unwrap(known, name)
            except KeyDamaged as error:
                raise key_file.KeysUnusable(str(error)) from error
        if is_former or key is None:
            row = {**row, "pseudonym": new_pseudonym()}
            if key is not None:
                row |= self._wrap(key, row["pseudonym"])
        self._add(name, RewrittenPerson(row["pseudonym"], key), row)

    def rename(self, name: str) -> str:
        """Return the pseudonym of whom the old log calls so."""
        return (self.by_name.get(name) or self._make(name)).pseudonym

    def store(self) -> None:
        """Store what is not stored yet."""
        store_rows(self._conn, "backlot_persons", self._unstored)
        self._unstored.clear()

    def _make(self, name: str) -> RewrittenPerson:
        key, row = new_person(self._wrapping, new_pseudonym(), name)
        made = RewrittenPerson(row.pseudonym, key)
        hexed = {"lookup": _hex(row.lookup), "name": _hex(row.name), "key": _hex(row.key)}
        self._add(name, made, {**row._asdict(), **hexed})
        return made

    def _wrap(self, key: bytes, pseudonym: str) -> key_file.Row:
        number, wrapped = self._wrapping.wrap(key, pseudonym)
        return {"key": _hex(wrapped), "wrapping_key": number}

    def _add(self, name: str, person: RewrittenPerson, row: key_file.Row) -> None:
        self.by_name[name] = self.by_pseudonym[person.pseudonym] = person
        self._unstored.append(row)
        if len(self._unstored) >= ROWS_AT_ONCE:
            self.store()


def _hex(value: bytes) -> str:
    return f"\\x{value.hex()}"


class LogRewrite:
    """Takes the events of the old log in order, and says what they are in the new one.

    It remembers each event of a stream that gets another id: about 200 bytes of memory for each.
    """

    def __init__(self, book: PersonBook, *, has_keys: bool) -> None:
        self._book, self._has_keys = book, has_keys
        self._moved: dict[bytes, bytes] = {}
        self._old, self._new = EventMapper(), EventMapper()
        self._old.ciphers, self._new.ciphers = (
            BookCiphers(book.by_name),
            BookCiphers(book.by_pseudonym),
        )
        self.unreadable = 0

    @property
    def moved(self) -> int:
        """How many events are in a stream with another id."""
        return len(self._moved)

    def row(self, row: StoredRow) -> StoredRow:
        """Return an event as the new log has it; raise ImportRefused where its key is not there.

        What nobody can read stays as it is.
        """
        topic, state = row.topic, row.state
        if topic is None or state is None:
            self.unreadable += 1
            return row
        if SEALED_BYTES in state and not self._has_keys:
            raise ImportRefused(
                f"the text at position {row.position} is encrypted, and there are no keys: export "
                "with --with-keys"
            )
        try:
            payload = self._old.payload(row.stream_id, row.version, topic, state)
        except ValueError:
            self.unreadable += 1
            return row
        if type(payload) is not dict:
            self.unreadable += 1
            return row
        return self._rewritten(row, topic, payload)

    def _rewritten(self, row: StoredRow, topic: str, payload: dict[str, Any]) -> StoredRow:
        is_made = _made_stream(topic, payload) == row.stream_id
        named = dict(named_in(topic, payload))
        anew = {name: self._book.rename(person) for name, person in named.items()}
        payload |= anew
        stream = (_made_stream(topic, payload) if is_made else None) or row.stream_id
        followed = self._follow(payload, named)
        if anew == named and not followed and not has_texts(topic):
            return row
        if stream != row.stream_id:
            before = event_id(row.stream_id, row.version).bytes
            self._moved[before] = event_id(stream, row.version).bytes
        state = self._new.state(stream, row.version, topic, payload)
        return row._replace(stream_id=stream, state=state)

    def _follow(self, payload: dict[str, Any], named: Mapping[str, str]) -> bool:
        """Let an event name its cause and its conversation as the new log has them."""
        before = {name: payload.get(name) for name in ("correlation_id", "causation_id")}
        after = {name: self._followed(value, named) for name, value in before.items()}
        payload |= {name: value for name, value in after.items() if name in payload}
        return after != before

    def _followed(self, value: object, named: Mapping[str, str]) -> object:
        """Return an id as the new log has it: of a moved event, or of what is about a person."""
        if type(value) is not str:
            return value
        if len(value) == UUID_TEXT and (moved := self._moved.get(_uuid_bytes(value))):
            return str(UUID(bytes=moved))
        for person in named.values():
            if value.endswith(f"-{person}"):
                return value.removesuffix(person) + self._book.rename(person)
        return value


def _uuid_bytes(text: str) -> bytes:
    try:
        return UUID(text).bytes
    except ValueError:
        return b""


def _made_stream(topic: str, payload: Mapping[str, Any]) -> UUID | None:
    event = EVENT_CLASSES.get(topic)
    try:
        return None if event is None else event.AGGREGATE.stream_of(payload)
    except (KeyError, ValueError, TypeError, AttributeError):
        # Of another shape than any release records.
        return None


@dataclass(frozen=True, slots=True)
class RewriteResult:
    """What became of a log; `former` is what the check of the old one found.

    `moved` events are in streams with other ids; `unreadable` ones stayed as they were.
    """

    former: Report
    persons: int
    moved: int
    unreadable: int


def rewrite_log(
    conn: Connection[TupleRow],
    path: Path,
    kek: KeyEncryption,
    proofs: Proofs = NO_PROOFS,
    *,
    seal_key: SealKey | None,
    block_events: int,
    known_topics: Container[str] | None = None,
    on_progress: Callable[[int], None] = lambda events: None,
) -> RewriteResult:
    """Fill an empty store with what an export is under pseudonyms, all or nothing.

    Whose keys lie beside the export keep them. The first seal, over at most `block_events`, is made
    and signed. Raise ImportRefused, ExportUnusable, KeysUnusable, KeyEncryptionFailed,
    AnchorsUnusable and psycopg.Error.
    """
    check = whole_log(path, proofs, known_topics)
    with filled(conn):
        has_keys = keys_path(path).exists()
        book = _read_book(conn, keys_path(path), kek) if has_keys else _new_book(conn, kek)
        rewrite = LogRewrite(book, has_keys=has_keys)
        for batch in batches(check.items()):
            rows = [rewrite.row(item) for item in batch if isinstance(item, StoredRow)]
            on_progress(write_items(conn, rows))
        former = finished(check, path)
        if former.newest is None:
            raise ImportRefused(f"{path} has no seal that the new log could follow")
        book.store()
        follows = former.newest.hash
        insert_seal(conn, make_seal(conn, None, block_events, seal_key, b"", follows=follows))
    return RewriteResult(former, len(book.by_name), rewrite.moved, rewrite.unreadable)


def _new_book(conn: Connection[TupleRow], kek: KeyEncryption) -> PersonBook:
    key_file.require_no_persons(conn)
    return PersonBook(conn, load_wrapping_keys(conn, kek, make=True))


def _read_book(conn: Connection[TupleRow], path: Path, kek: KeyEncryption) -> PersonBook:
    former = set[str]()
    book: PersonBook | None = None
    for table, rows in groupby(read_keys(path), key=itemgetter(0)):
        if table == "backlot_wrapping_keys":
            wrapping = key_file.store_wrapping_keys(conn, (row for _, row in rows), kek)
            book = PersonBook(conn, wrapping)
        elif table == "backlot_former_names":
            former.update(row["name"] for _, row in rows)
        elif book is not None and table == "backlot_persons":
            for _, row in rows:
                book.take(row, is_former=row["pseudonym"] in former)
        elif book is not None:
            book.store()
            renamed = ({**row, "pseudonym": book.rename(row["pseudonym"])} for _, row in rows)
            store_rows(conn, table, renamed)
    if book is None:
        raise key_file.KeysUnusable(f"{path} has no wrapping keys")
    return book

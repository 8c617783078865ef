"""What is handed to the event store at once: saves, what became of them, and their SQL arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from eventsourcing.persistence import IntegrityError, StoredEvent

from infra.arrays import array

NO_ANSWERS = ("{}",) * 6


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What a caller was told, kept under its idempotency key together with the events.

    `telemetry` is not kept: it is the head of the telemetry when the answer is given.
    """

    actor: str
    key: str
    request_hash: bytes
    status: int
    body: bytes
    position: int = 0
    telemetry: int = 0


@dataclass(frozen=True, slots=True)
class Save:
    """Events that are recorded together or not at all, with the answers that they led to."""

    events: Sequence[StoredEvent]
    answers: Sequence[StoredAnswer] = ()

    def keys(self) -> set[Any]:
        """What must not exist yet; raises IntegrityError when the save contradicts itself."""
        keys: set[Any] = {(e.originator_id, e.originator_version) for e in self.events}
        if len(keys) < len(self.events):
            raise IntegrityError("One save holds the same version of a stream twice.")
        keys.update((answer.actor, answer.key) for answer in self.answers)
        return keys


@dataclass(frozen=True, slots=True)
class Appended:
    """Outcome of one append: the head before it, and for each save its positions or a conflict."""

    head: int
    outcomes: list[range | None] = field(default_factory=list)


def columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def arguments(saves: Sequence[Save]) -> tuple[Any, ...]:
    events = [event for save in saves for event in save.events]
    return (
        array(str(index) for index, save in enumerate(saves) for _ in save.events),
        array(_id(event) for event in events),
        array(str(event.originator_version) for event in events),
        [event.topic for event in events],
        [event.state for event in events],
        *_answer_columns(saves),
    )


def _answer_columns(saves: Sequence[Save]) -> Sequence[Any]:
    answers = [(index, answer) for index, save in enumerate(saves) for answer in save.answers]
    if not answers:
        # An empty list takes psycopg as long as a full one; few requests have a key.
        return NO_ANSWERS
    return (
        [index for index, _ in answers],
        [answer.actor for _, answer in answers],
        [answer.key for _, answer in answers],
        [answer.request_hash for _, answer in answers],
        [answer.status for _, answer in answers],
        [answer.body for _, answer in answers],
    )


def _id(event: StoredEvent) -> str:
    stream = event.originator_id
    if isinstance(stream, UUID):
        return stream.hex
    # A text id of the library's; only such ids can need quotes.
    return '"' + stream.replace("\\", "\\\\").replace('"', '\\"') + '"'


def outcomes(
    saves: Sequence[Save], head: int, refused: set[int], ours: dict[int, range]
) -> Iterable[range | None]:
    position = head
    for index, save in enumerate(saves):
        if index in refused:
            yield ours.get(index)
        else:
            yield range(position + 1, position + 1 + len(save.events))
            position += len(save.events)

"""Which refusal of a command becomes which answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import structlog
from eventsourcing.persistence import MapperDeserialisationError, PersistenceError

from commands.uploads import UploadFinalizing
from domain.errors import Conflict, DomainError, Invalid, NotAllowed, NotFound
from engine.command_bus import Contended, KeyReused
from infra.batcher import NotBegun, QueueFull
from infra.http.problems import Problem
from infra.objects.port import NoSuchUpload, ObjectStoreUnavailable, PartMismatch
from infra.redlock import LocksUnavailable

log = structlog.get_logger(__name__)

RETRY_SOON = {"Retry-After": "1"}


def _refusal(status: int, slug: str) -> Callable[[DomainError], Problem]:
    return lambda error: Problem(status, slug, str(error), **error.state)


def _store_away(_: Exception) -> Problem:
    detail = "The event store does not answer; whether the command was recorded is not known."
    advice = "Send it again with the same Idempotency-Key."
    return Problem(503, "store-unavailable", f"{detail} {advice}", headers=RETRY_SOON)


def _unreadable(error: MapperDeserialisationError) -> Problem:
    log.error("stream_unreadable", error=str(error))
    detail = "What is stored here can't be read by this release; an operator has to look at it."
    return Problem(503, "stream-unreadable", detail)


def _part_mismatch(error: PartMismatch) -> Problem:
    return Problem(
        422, "parts-mismatch", str(error), missing=list(error.missing), wrong=list(error.wrong)
    )


translate: dict[type[Exception], Callable[[Any], Problem]] = {
    NotFound: _refusal(404, "not-found"),
    NotAllowed: _refusal(403, "forbidden"),
    Conflict: _refusal(409, "conflict"),
    Contended: _refusal(409, "contended"),
    UploadFinalizing: lambda error: Problem(
        409, "upload-finalizing", str(error), headers={"Retry-After": "2"}
    ),
    KeyReused: _refusal(409, "idempotency-key-reused"),
    Invalid: _refusal(422, "invalid"),
    QueueFull: lambda _: Problem(
        503, "overloaded", "Too many commands wait; try again soon.", headers=RETRY_SOON
    ),
    NotBegun: lambda _: Problem(
        503,
        "store-unavailable",
        "The event store does not answer; nothing was recorded. Send it again.",
        headers=RETRY_SOON,
    ),
    PersistenceError: _store_away,
    MapperDeserialisationError: _unreadable,
    psycopg.Error: _store_away,
    PartMismatch: _part_mismatch,
    NoSuchUpload: lambda error: Problem(409, "upload-gone", str(error)),
    LocksUnavailable: lambda _: Problem(
        503,
        "locks-unavailable",
        "The lock service does not answer; nothing was changed. Try again later.",
        headers={"Retry-After": "5"},
    ),
    ObjectStoreUnavailable: lambda error: Problem(
        503, "object-store-unavailable", str(error), headers={"Retry-After": "5"}
    ),
}

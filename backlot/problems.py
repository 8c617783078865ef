"""Which refusal or failure becomes which answer of the commands, and of the queries."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import psycopg
import structlog
from eventsourcing.persistence import MapperDeserialisationError, PersistenceError

from commands.comments import AuthorBlocked, CommentsClosed
from commands.uploads import UploadFinalizing
from domain.errors import Conflict, DomainError, Invalid, NotAllowed, NotFound
from engine.checkpoints import ReadModelBehind
from engine.command_bus import Contended, KeyReused
from engine.reservations import QuotaExceeded
from infra.batcher import NotBegun, QueueFull
from infra.http.problems import Make, Problem
from infra.http.shapes import InvalidPosition, encode_position
from infra.objects.port import NoSuchUpload, ObjectStoreUnavailable, PartMismatch
from infra.redlock import LocksUnavailable
from projections.analytics.queries import AnalyticsUnavailable, TooManyPoints
from readapi.audit.inspector import NotRecorded
from readapi.queries import InvalidCursor, ReadModelUnavailable

log = structlog.get_logger(__name__)


UNKNOWN = (
    "The event store does not answer; whether the command was recorded is not known. "
    "Send it again with the same Idempotency-Key."
)
NOTHING_RECORDED = "The event store does not answer; nothing was recorded. Send it again."
UNREADABLE = "What is stored here can't be read by this release; an operator has to look at it."
NO_LOCKS = "The lock service does not answer; nothing was changed. Try again later."
NO_READ_MODELS = "The database of the read models does not answer; try again soon."
NO_ANALYTICS = "The database of the analytics does not answer; try again soon."


def _refusal(
    status: int, slug: str, detail: str | None = None, *, retry: int = 0, logged: bool = False
) -> Make:
    """Return what makes this problem of an error, in the error's words unless `detail` is given.

    `retry` is after how many seconds the client may try again; 0 says nothing of that.
    """
    headers = {"Retry-After": str(retry)} if retry else {}

    def make(error: Exception) -> Problem:
        if logged:
            log.warning(slug.replace("-", "_"), error=str(error))
        state = error.state if isinstance(error, DomainError) else {}
        return Problem(status, slug, detail or str(error), headers=headers, **state)

    return make


def _unreadable(error: MapperDeserialisationError) -> Problem:
    log.error("stream_unreadable", error=str(error))
    return Problem(503, "stream-unreadable", UNREADABLE)


def _part_mismatch(error: PartMismatch) -> Problem:
    missing, wrong = list(error.missing), list(error.wrong)
    return Problem(422, "parts-mismatch", str(error), missing=missing, wrong=wrong)


def _behind(error: ReadModelBehind) -> Problem:
    events, telemetry = (max(numbers) for numbers in zip(*error.wanted.values(), strict=True))
    return Problem(
        503,
        "read-model-behind",
        str(error),
        headers={"Retry-After": "1"},
        wanted=encode_position(events, telemetry),
        positions={name: encode_position(*at) for name, at in error.positions.items()},
    )


def _over_quota(error: QuotaExceeded) -> Problem:
    headers = {
        "Retry-After": str(error.seconds),
        "RateLimit-Policy": f'"{error.quota}";q={error.most}',
        "RateLimit": f'"{error.quota}";r=0;t={error.seconds}',
    }
    return Problem(429, "quota-exceeded", str(error), headers=headers)


_store_away = _refusal(503, "store-unavailable", UNKNOWN, retry=1)
_objects_away = _refusal(503, "object-store-unavailable", retry=5)

OF_COMMANDS: Mapping[type[Exception], Make] = MappingProxyType(
    {
        NotFound: _refusal(404, "not-found"),
        NotAllowed: _refusal(403, "forbidden"),
        AuthorBlocked: _refusal(403, "blocked"),
        Conflict: _refusal(409, "conflict"),
        CommentsClosed: _refusal(409, "comments-closed"),
        Contended: _refusal(409, "contended"),
        UploadFinalizing: _refusal(409, "upload-finalizing", retry=2),
        KeyReused: _refusal(409, "idempotency-key-reused"),
        Invalid: _refusal(422, "invalid"),
        QuotaExceeded: _over_quota,
        QueueFull: _refusal(503, "overloaded", "Too many commands wait; try again soon.", retry=1),
        NotBegun: _refusal(503, "store-unavailable", NOTHING_RECORDED, retry=1),
        PersistenceError: _store_away,
        MapperDeserialisationError: _unreadable,
        psycopg.Error: _store_away,
        PartMismatch: _part_mismatch,
        NoSuchUpload: _refusal(409, "upload-gone"),
        LocksUnavailable: _refusal(503, "locks-unavailable", NO_LOCKS, retry=5),
        ObjectStoreUnavailable: _objects_away,
    }
)
OF_QUERIES: Mapping[type[Exception], Make] = MappingProxyType(
    {
        ReadModelBehind: _behind,
        ReadModelUnavailable: _refusal(
            503, "read-model-unavailable", NO_READ_MODELS, retry=1, logged=True
        ),
        AnalyticsUnavailable: _refusal(
            503, "analytics-unavailable", NO_ANALYTICS, retry=1, logged=True
        ),
        TooManyPoints: lambda error: Problem(422, "invalid", str(error), field="bucket"),
        InvalidPosition: _refusal(422, "position-invalid"),
        NotRecorded: _refusal(404, "not-found"),
        InvalidCursor: _refusal(422, "cursor-invalid"),
        ObjectStoreUnavailable: _objects_away,
    }
)

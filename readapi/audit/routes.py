"""What auditors and operators see of the log, over HTTP."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Container
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Annotated, Literal
from uuid import UUID

import psycopg
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field

from engine.checkpoints import Freshness
from engine.inspection.index import Search
from engine.inspection.streams import MAX_TRACED
from engine.log import END_OF_LOG
from engine.payload_mode import PayloadMode
from engine.seals import verification
from engine.seals.chain import connect
from engine.seals.places import AnchorsUnusable
from engine.seals.proofs import Proofs
from engine.seals.report import CaveatKind, FaultKind
from engine.seals.verification import Verification
from infra.http.auth import Admin, Auditor, Identity, ask, persons_of, role_refused
from infra.http.problems import Problem, problems
from infra.http.responses import NOT_MODIFIED, conditional_wire
from infra.http.shapes import VIDEO_ID, Time, Wire
from infra.pseudonyms import Pseudonyms, searched
from infra.security_log import SecurityEvent, record
from readapi.audit.inspector import (
    AuditEvent,
    AuditEventDetail,
    AuditStats,
    Inspector,
    Moment,
    StreamHistory,
    TraceTree,
)
from readapi.pages import Cursor, IfNoneMatch, Page, storable
from readapi.queries import Fresh, Queries, Read, ReadModelUnavailable

DEFAULT_LIMIT = 50
Limit = Annotated[int, Query(description="How many items at most.", ge=1, le=200)]
Position = Annotated[int, Path(ge=1, lt=END_OF_LOG, description="From 1.", examples=[1])]
MAX_NAME = 200
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(storable)]

RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d")


def _is_written_out(value: object) -> object:
    """Refuse a number, which pydantic takes for a time."""
    if not (isinstance(value, str) and RFC_3339.match(value)):
        raise ValueError("must be a time such as 2026-11-22T09:30:15Z")
    return value


WrittenTime = Annotated[AwareDatetime, BeforeValidator(_is_written_out)]

router = APIRouter(prefix="/audit", tags=["audit"])


async def payload_mode(
    request: Request,
    caller: Auditor,
    payload: Annotated[
        PayloadMode | None,
        Query(description="How payloads are shown; default: `full` for admins, else `masked`."),
    ] = None,
) -> PayloadMode:
    """Return the mode that is asked for; raise Problem where the caller's role forbids it.

    Reads of payloads in full tell something about persons: they are told to the security log.
    """
    mode = payload or (PayloadMode.FULL if caller.is_admin else PayloadMode.MASKED)
    if mode is PayloadMode.FULL and not caller.is_admin:
        raise role_refused(request, caller, "Full payloads need the role `admin`.")
    if mode is PayloadMode.FULL and "actor" not in request.query_params:
        _record(request, caller, mode)
    return mode


Mode = Annotated[PayloadMode, Depends(payload_mode)]
Persons = Annotated[Pseudonyms, Depends(persons_of)]


async def actor_searched(
    request: Request,
    caller: Auditor,
    mode: Mode,
    persons: Persons,
    actor: Annotated[
        Name | None,
        Query(description="Who acted: a user id; unless payloads are `full`, a pseudonym."),
    ] = None,
) -> str | None:
    """Return as whom the log has the actor that is asked for.

    Where names are not shown, none is taken either: so nobody can find out whose a pseudonym is.
    What one user did is told to the security log.
    """
    if actor is None:
        return None
    actor = await ask(partial(searched, persons, actor, by_name=mode is PayloadMode.FULL))
    _record(request, caller, mode, actor)
    return actor


def _record(request: Request, caller: Identity, mode: PayloadMode, actor: str = "") -> None:
    told = {"path": request.url.path, "actor": actor, "mode": mode}
    record(SecurityEvent.PERSONAL_DATA_READ, caller.person, **told)


def search_of_query(
    stream: Annotated[UUID | None, Query(description="Only this stream's.")] = None,
    aggregate: Annotated[Name | None, Query(description="Such as `comment`.")] = None,
    types: Annotated[
        list[Name],
        Query(
            alias="type",
            max_length=50,
            description="A topic with or without its version, or a kind of aggregate; "
            "several: any of them.",
        ),
    ] = [],  # noqa: B006 - FastAPI copies it
    actor: Annotated[str | None, Depends(actor_searched)] = None,
    correlation_id: Annotated[
        Name | None, Query(alias="correlationId", description="Of one conversation.")
    ] = None,
    since: Annotated[
        WrittenTime | None, Query(alias="from", description="Recorded at or after this time.")
    ] = None,
    until: Annotated[
        WrittenTime | None, Query(alias="to", description="Recorded before this time.")
    ] = None,
    after: Annotated[int, Query(ge=0, lt=END_OF_LOG, description="After this position.")] = 0,
    before: Annotated[
        int, Query(ge=1, le=END_OF_LOG, description="Before this position.")
    ] = END_OF_LOG,
    order: Annotated[
        Literal["asc", "desc"], Query(description="By position; `desc` is newest first.")
    ] = "desc",
) -> Search:
    """Return what the query string asks for: all conditions together."""
    newest_first = order == "desc"
    return Search(
        stream, aggregate, types, actor, correlation_id, since, until, after, before, newest_first
    )


def moment(
    version: Annotated[
        int | None, Query(alias="atVersion", ge=1, lt=END_OF_LOG, description="Up to this version.")
    ] = None,
    time: Annotated[
        WrittenTime | None, Query(alias="atTime", description="Up to this time, included.")
    ] = None,
) -> Moment:
    """Return the moment up to which a stream is wanted."""
    return Moment(version, time)


@asynccontextmanager
async def open_inspector(
    queries: Queries, fresh: Freshness, mode: PayloadMode, persons: Pseudonyms
) -> AsyncIterator[Inspector]:
    """Open an inspector on a connection of its own; raise as `Queries.reading` does.

    It reads the log itself, beside an index, and knows all that is recorded.
    """
    async with queries.reading(fresh) as conn:
        yield Inspector(conn, queries.audit, mode, persons)


@router.get(
    "/events",
    response_model=Page[AuditEvent],
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED,
    summary="Recorded events, by any of what is known of them",
)
async def list_audit_events(
    request: Request,
    queries: Read,
    mode: Mode,
    persons: Persons,
    fresh: Fresh,
    search: Annotated[Search, Depends(search_of_query)],
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
    if_none_match: IfNoneMatch = None,
) -> Response:
    async with open_inspector(queries, fresh, mode, persons) as inspector:
        found = await inspector.events(search, limit, cursor)
    return await conditional_wire(request, found)


@router.get(
    "/events/{position}",
    response_model=AuditEventDetail,
    responses=problems(401, 403, 404, 422, 503) | NOT_MODIFIED,
    summary="One event, with its neighbours, its cause and its effects",
)
async def get_audit_event(
    position: Position,
    request: Request,
    queries: Read,
    mode: Mode,
    persons: Persons,
    fresh: Fresh,
    if_none_match: IfNoneMatch = None,
) -> Response:
    async with open_inspector(queries, fresh, mode, persons) as inspector:
        found = await inspector.event(position)
    return await conditional_wire(request, found)


@router.get(
    "/streams/{stream_id}",
    response_model=StreamHistory,
    responses=problems(401, 403, 404, 422, 503) | NOT_MODIFIED,
    summary="A stream event by event, and its aggregate's state at a version or a time",
)
async def get_audit_stream(
    stream_id: Annotated[UUID, Path(examples=[VIDEO_ID])],
    request: Request,
    queries: Read,
    mode: Mode,
    persons: Persons,
    fresh: Fresh,
    at: Annotated[Moment, Depends(moment)],
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
    if_none_match: IfNoneMatch = None,
) -> Response:
    async with open_inspector(queries, fresh, mode, persons) as inspector:
        found = await inspector.stream(stream_id, at, limit, cursor)
    return await conditional_wire(request, found)


@router.get(
    "/trace/{correlation_id}",
    response_model=TraceTree,
    responses=problems(401, 403, 404, 422, 503) | NOT_MODIFIED,
    summary="Everything that a request led to, as a tree of cause and effect",
)
async def get_audit_trace(
    correlation_id: Annotated[
        str, Path(min_length=1, max_length=MAX_NAME), AfterValidator(storable)
    ],
    request: Request,
    queries: Read,
    mode: Mode,
    persons: Persons,
    fresh: Fresh,
    limit: Annotated[
        int, Query(description="How many events at most, the first.", ge=1, le=MAX_TRACED)
    ] = MAX_TRACED,
    if_none_match: IfNoneMatch = None,
) -> Response:
    async with open_inspector(queries, fresh, mode, persons) as inspector:
        found = await inspector.trace(correlation_id, limit)
    return await conditional_wire(request, found)


@router.get(
    "/stats",
    response_model=AuditStats,
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED,
    summary="How many events of which kinds there are, and how large the log is",
)
async def get_audit_stats(
    request: Request,
    queries: Read,
    caller: Auditor,
    persons: Persons,
    fresh: Fresh,
    if_none_match: IfNoneMatch = None,
) -> Response:
    async with open_inspector(queries, fresh, PayloadMode.NONE, persons) as inspector:
        found = await inspector.stats()
    return await conditional_wire(request, found)


STALE_SECONDS = 3600.0


class LogFault(Wire):
    """The first place where the log is not what was sealed."""

    kind: FaultKind
    detail: str
    position: int | None = None
    stream_id: UUID | None = None
    version: int | None = None
    seal: int | None = None


class LogCaveat(Wire):
    """What a result can't prove: one of a few kinds, such as `unsigned`, and in words."""

    kind: CaveatKind
    detail: str


class StoredResult(Wire):
    """What a row of the database says of a verification by another process: a hint, no proof."""

    ok: bool
    verified_at: Time
    complete: bool


class LogIntegrity(Wire):
    """The result of a check of the log against its seals, which the answering process has made.

    Positions `from` to `sealedTo` were compared; the `unsealed` events after them are not proved
    yet. `complete` says that the check began at the first event; otherwise this process had found
    the positions before `from` good, and last compared all of them at `completeAt`. `hint` is the
    newest result of another process, where there is one.
    """

    ok: bool
    verified_at: Time
    complete: bool
    complete_at: Time
    first: int = Field(alias="from")
    events: int
    sealed_to: int
    seals: int
    signed: int
    anchored: int
    timestamped: int
    unsealed: int
    caveats: list[LogCaveat]
    fault: LogFault | None = None
    hint: StoredResult | None = None


class VerificationStopped(Exception):
    """The process ends before the verification did."""


@dataclass(frozen=True, slots=True)
class Proved:
    """What this process has found, when it last looked at everything, and what others say."""

    verification: Verification
    complete_at: datetime
    hint: Verification | None


class Integrity:
    """Verifies in a thread of its own, one verification at a time in this process.

    What the database says of earlier verifications is a hint: whoever can change the log can write
    such a row. So each process begins with a verification of its own.
    """

    def __init__(
        self,
        database_url: str,
        proofs: Proofs,
        known_topics: Container[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` tells, in seconds, how old a result is."""
        self._database_url, self.proofs = database_url, proofs
        self._known_topics, self._clock = known_topics, clock
        self._one_at_a_time = asyncio.Lock()
        self._began = self._ended = -1.0
        self._found: Proved | None = None
        self._stopping = False

    async def result(self, *, full: bool) -> Proved:
        """Return this process's newest result, at most an hour old; `full`: from the first event.

        Where the seals are not those that are known outside, or the database has a newer result
        that is not good, everything is verified anew. A caller who waits for a running verification
        gets its result, if it began after the call.
        Raise psycopg.Error, AnchorsUnusable and VerificationStopped.
        """
        asked = time.monotonic()
        async with self._one_at_a_time:
            found = self._found if self._began >= asked else None
            if found is not None and (found.verification.complete or not full):
                return found
            self._began = time.monotonic()
            self._found = await asyncio.to_thread(self._verify, full=full)
            return self._found

    async def close(self) -> None:
        """End a verification that is running."""
        self._stopping = True

    def _verify(self, *, full: bool) -> Proved:
        with connect(self._database_url, "verification") as conn:
            hint, kept = verification.latest(conn), self._found
            if kept is not None and hint is not None:
                if hint.verified_at == kept.verification.verified_at:
                    hint = None
                elif not hint.report.get("ok") and hint.verified_at > kept.complete_at:
                    full = True
            trusting = kept is None or kept.verification.report["ok"]
            full = full or bool(trusting and self.proofs.outside.compare(conn).differences)
            if kept is not None and not full and self._clock() - self._ended < STALE_SECONDS:
                return replace(kept, hint=hint)
            proved = None if kept is None or full else kept.verification
            report = verification.verify_database(
                conn,
                self.proofs,
                known_topics=self._known_topics,
                after=verification.last_good_seal(conn, proved),
                on_progress=self._go_on,
            )
            found = verification.record(conn, report)
            self._ended = self._clock()
            before = found.verified_at if kept is None else kept.complete_at
            return Proved(found, found.verified_at if found.complete else before, hint)

    def _go_on(self, rows: int) -> None:
        if self._stopping:
            raise VerificationStopped


async def _integrity(request: Request) -> Integrity:
    found: Integrity = request.app.state.integrity
    return found


@router.get(
    "/verify",
    response_model=LogIntegrity,
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED,
    summary="Integrity of the event log",
)
async def verify_log(
    request: Request,
    caller: Admin,
    integrity: Annotated[Integrity, Depends(_integrity)],
    full: Annotated[
        bool, Query(description="Check everything now, from the first event; may take minutes.")
    ] = False,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """What this process has proved; when that is older than an hour, what came since is checked
    first. What the database says of verifications by others is told as a hint.
    """
    try:
        found = await integrity.result(full=full)
    except psycopg.OperationalError as error:
        raise ReadModelUnavailable(str(error)) from error
    except (AnchorsUnusable, VerificationStopped) as error:
        detail = "The log can't be verified right now; the server's log says why."
        headers = {"Retry-After": "60"}
        raise Problem(503, "unavailable", detail, headers=headers) from error
    newest, hint = found.verification, found.hint
    said = {
        **newest.report,
        "verifiedAt": newest.verified_at,
        "complete": newest.complete,
        "completeAt": found.complete_at,
        "hint": None if hint is None else _as_hint(hint),
    }
    return await conditional_wire(request, LogIntegrity.model_validate(said))


def _as_hint(stored: Verification) -> StoredResult:
    ok = stored.report.get("ok") is True
    return StoredResult(ok=ok, verified_at=stored.verified_at, complete=stored.complete)

"""What operators are told about the integrity of the event log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Container
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

import psycopg
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from infra import seals
from infra.contract import Time, Wire
from infra.http import Admin, wire
from infra.problems import Problem, problems
from infra.seals import AnchorsUnusable, Proofs, Verification
from readapi.queries import ReadModelUnavailable

STALE_AFTER = timedelta(hours=1)


class LogFault(Wire):
    """The first place where the log is not what was sealed."""

    kind: str
    detail: str
    position: int | None = None
    stream_id: UUID | None = None
    version: int | None = None
    seal: int | None = None


class LogIntegrity(Wire):
    """The result of a check of the log against its seals.

    Positions `from` to `sealedTo` were compared; the `unsealed` events after them are not proved
    yet. `complete` says that the check began at the first event; otherwise an earlier one had
    found the positions before `from` good.
    """

    ok: bool
    verified_at: Time
    complete: bool
    first: int = Field(alias="from")
    events: int
    sealed_to: int
    seals: int
    signed: int
    anchored: int
    unsealed: int
    fault: LogFault | None = None


class VerificationStopped(Exception):
    """The process ends before the verification did."""


class Integrity:
    """Verifies in a thread of its own, one verification at a time in this process."""

    def __init__(self, database_url: str, proofs: Proofs, known_topics: Container[str]) -> None:
        self._database_url, self._proofs = database_url, proofs
        self._known_topics = known_topics
        self._one_at_a_time = asyncio.Lock()
        self._began = -1.0
        self._found: Verification | None = None
        self._stopping = False

    async def result(self, *, full: bool) -> Verification:
        """The newest result, at most an hour old; `full` asks for one from the first event, now.

        Who comes while another's verification runs gets its result, if it began after the call.
        Raises psycopg.Error, AnchorsUnusable and VerificationStopped.
        """
        asked = time.monotonic()
        async with self._one_at_a_time:
            found = self._found if self._began >= asked else None
            if found is not None and (found.complete or not full):
                return found
            self._began = time.monotonic()
            self._found = await asyncio.to_thread(self._verify, full=full)
            return self._found

    async def close(self) -> None:
        """End a verification that is running."""
        self._stopping = True

    def _verify(self, *, full: bool) -> Verification:
        with seals.connect(self._database_url, "verification") as conn:
            kept = None if full else seals.latest(conn)
            if kept is not None and datetime.now(UTC) - kept.verified_at < STALE_AFTER:
                return kept
            report = seals.verify_database(
                conn,
                public_keys=self._proofs.public_keys,
                anchors=self._proofs.open_anchors(),
                known_topics=self._known_topics,
                after=None if full else seals.last_good_seal(conn),
                on_progress=self._go_on,
            )
            return seals.keep(conn, report)

    def _go_on(self, rows: int) -> None:
        if self._stopping:
            raise VerificationStopped


async def _integrity(request: Request) -> Integrity:
    found: Integrity = request.app.state.integrity
    return found


router = APIRouter(prefix="/audit", tags=["audit"])


@router.get(
    "/verify",
    response_model=LogIntegrity,
    responses=problems(401, 403, 422, 503),
    summary="Integrity of the event log",
)
async def verify_log(
    caller: Admin,
    integrity: Annotated[Integrity, Depends(_integrity)],
    full: Annotated[
        bool, Query(description="Check everything now, from the first event; may take minutes.")
    ] = False,
) -> Response:
    """The newest result; when it is older than an hour, what came since is checked first."""
    try:
        found = await integrity.result(full=full)
    except psycopg.OperationalError as error:
        raise ReadModelUnavailable(str(error)) from error
    except (AnchorsUnusable, VerificationStopped) as error:
        detail = "The log can't be verified right now; the server's log says why."
        headers = {"Retry-After": "60"}
        raise Problem(503, "unavailable", detail, headers=headers) from error
    return wire(_present(found))


def _present(found: Verification) -> LogIntegrity:
    said = {**found.report, "verifiedAt": found.verified_at, "complete": found.complete}
    return LogIntegrity.model_validate(said)

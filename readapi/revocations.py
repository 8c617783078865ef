"""Revocations: what each process that serves requests knows of them, and the list for operators.

They are folded from their stream in the event log, not read from a projection: a projection that
has stopped would let revoked tokens through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

import psycopg
import structlog
from eventsourcing.persistence import MapperDeserialisationError, PersistenceError
from fastapi import APIRouter, Depends, Request, Response

from domain.model import FORGOTTEN
from domain.revocations import STREAM_ID, Revocation, Revocations
from engine.connections import Backoff, in_thread
from engine.event_store import GroupCommitRecorder
from engine.log import MAPPER
from engine.personal_data import IN_THE_LOG, PersonalEvents
from engine.subscription import woken
from infra.http.auth import Admin, Authenticator, RevokedTokens, ask
from infra.http.problems import problems
from infra.http.responses import NOT_MODIFIED, conditional_wire
from infra.http.shapes import RevokedToken
from readapi.pages import IfNoneMatch, Page, Paged, decode_cursor
from readapi.queries import Fresh, Read, ReadModelUnavailable

log = structlog.get_logger(__name__)

# Every like wakes it too: between two looks is so much, without a notification so much at most.
PAUSE_SECONDS = 0.25
POLL_SECONDS = 10.0
KIND = "revocation"

PERSONAL = (
    PersonalEvents(
        name="events.revoked",
        holds="revocations of all of somebody's tokens, with the reason",
        kept="the event log is kept for good",
        events=(Revocations.UserRevoked,),
        subject="user_id",
        forget=IN_THE_LOG,
    ),
)


class RevocationFollower:
    """Tells an authenticator what the log says is revoked, now and as it grows; for one loop."""

    def __init__(
        self,
        recorder: GroupCommitRecorder,
        authenticator: Authenticator,
        wake: asyncio.Event,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`wake` is set whenever something was recorded."""
        self._recorder = recorder
        self._authenticator = authenticator
        self._wake = wake
        self._clock = clock
        self._revocations: Revocations | None = None
        self._told = RevokedTokens()
        self._reading = asyncio.Lock()

    @property
    def standing(self) -> Sequence[Revocation]:
        """The revocations that can still matter, newest first."""
        found = self._revocations.standing.values() if self._revocations else ()
        since = self._clock() - self._authenticator.max_lifetime
        return sorted((each for each in found if each.at > since), key=_number, reverse=True)

    async def refresh(self) -> None:
        """Take in what was recorded since; what the authenticator was told before stays till then.

        Raise PersistenceError when the store is away, MapperDeserialisationError for an event that
        this release can't read.
        """
        async with self._reading:
            version = self._revocations.version if self._revocations else 0
            known = [(STREAM_ID, version)]
            rows, *_ = await in_thread(self._recorder.fetch, known, (), lambda _: None)
            events = [MAPPER.decode(*row) for row in rows]
            for event in events:
                self._revocations = event.mutate(self._revocations)
            revoked = _tokens(self.standing)
            if revoked != self._told:
                self._told = revoked
                self._authenticator.revoke(revoked)
                log.info(
                    "revocations_changed", tokens=len(revoked.tokens), users=len(revoked.users)
                )

    async def readable(self, rows: Sequence[Revocation]) -> list[Revocation]:
        """Return them without the words that nobody can read in the log any more.

        They were read before their persons were forgotten. Raise Problem.
        """
        names = await ask(self._authenticator.persons.names, set(map(_whose, rows)))
        return [
            replace(each, reason="") if names.get(_whose(each)) == FORGOTTEN else each
            for each in rows
        ]

    async def run(self) -> None:
        """Follow until cancelled; while the store is away, what is known goes on."""
        backoff = Backoff()
        while True:
            await woken(self._wake, POLL_SECONDS)
            try:
                await self.refresh()
                backoff.reset()
            except (PersistenceError, psycopg.Error) as error:
                log.warning("revocations_unread", error=" ".join(str(error).split()))
                self._wake.set()
                await asyncio.sleep(backoff.next())
            except MapperDeserialisationError as error:
                # Of a newer release; what is known goes on, and a restart of this one is refused.
                log.error("revocations_unreadable", error=str(error))
            await asyncio.sleep(PAUSE_SECONDS)


def _number(revocation: Revocation) -> int:
    return revocation.number


def _whose(revocation: Revocation) -> str:
    """Return the person with whose key the reason is encrypted."""
    return revocation.user_id or revocation.revoked_by


def _tokens(standing: Sequence[Revocation]) -> RevokedTokens:
    tokens = frozenset(each.jti for each in standing if each.jti is not None)
    # The newest of a user comes first, and holds.
    users = {each.user_id: each.at.timestamp() for each in reversed(standing) if each.user_id}
    return RevokedTokens(tokens, users)


async def _follower(request: Request) -> RevocationFollower:
    follower: RevocationFollower = request.app.state.revocations
    return follower


router = APIRouter(prefix="/admin/revocations", tags=["revocations"])


@router.get(
    "",
    response_model=Page[RevokedToken],
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED,
    summary="Revocations that tokens may still be refused for, newest first",
)
async def list_revocations(
    request: Request,
    caller: Admin,
    queries: Read,
    fresh: Fresh,
    follower: Annotated[RevocationFollower, Depends(_follower)],
    page: Paged,
    if_none_match: IfNoneMatch = None,
) -> Response:
    await queries.confirm(fresh)
    try:
        await follower.refresh()
    except (PersistenceError, psycopg.Error) as error:
        raise ReadModelUnavailable(str(error)) from error
    before = decode_cursor(KIND, page.cursor)
    behind = [each for each in follower.standing if each.number < before]
    rows, following = page.cut(KIND, behind[: page.rows], _number)
    items = [RevokedToken.of(row) for row in await follower.readable(rows)]
    return await conditional_wire(request, Page[RevokedToken](items=items, next_cursor=following))

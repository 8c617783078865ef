"""What one process revokes, every other one refuses, at once, after a restart, and while the store
is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import MapperDeserialisationError, OperationalError, StoredEvent

from commands.revocations import Revoke, RevokeTokens, WithdrawRevocation
from domain.revocations import STREAM_ID
from engine.event_store import GroupCommitRecorder
from engine.subscription import EVENTS, Notifications
from infra.http.auth import Authenticator, InvalidToken, mint_token, token_id
from infra.http.keys import OneKey
from readapi.revocations import RevocationFollower
from tests.integration.buses import execute, open_bus, with_bus
from tests.support import ended, until

SECRET = "a secret of the tests, long enough for HS256"
WEEK = timedelta(days=7)


def authenticator(lifetime: timedelta = WEEK) -> Authenticator:
    return Authenticator(OneKey(SECRET, ["HS256"]), max_lifetime=lifetime)


def follower(
    recorder: GroupCommitRecorder, subject: Authenticator, **options: Any
) -> RevocationFollower:
    return RevocationFollower(recorder, subject, asyncio.Event(), **options)


def takes(subject: Authenticator, token: str) -> bool:
    try:
        return bool(subject.authenticate(token))
    except InvalidToken as error:
        return "token is revoked" not in error.reason


def revoke(**named: str) -> RevokeTokens:
    return RevokeTokens(uuid4(), Revoke(reason="stolen", **named), WEEK)


@asynccontextmanager
async def another_process(
    recorder: GroupCommitRecorder, log_url: str, subject: Authenticator
) -> AsyncIterator[RevocationFollower]:
    """Another process as it serves: it listens to the log and follows the revocations."""
    notifications = Notifications(log_url)
    found = RevocationFollower(recorder, subject, notifications.subscribe(EVENTS))
    await found.refresh()
    work = [asyncio.create_task(each) for each in (notifications.run(), found.run())]
    try:
        yield found
    finally:
        await ended(*work)


def test_another_process_refuses_it_and_takes_it_again(
    recorder: GroupCommitRecorder, another: GroupCommitRecorder, log_url: str
) -> None:
    subject = authenticator()
    stolen, other = mint_token(SECRET, "ann"), mint_token(SECRET, "ann")

    async def run() -> None:
        async with another_process(another, log_url, subject), open_bus(recorder) as bus:
            assert takes(subject, stolen)
            command = revoke(jti=token_id(stolen))
            await execute(bus, command, "olga")
            await until(lambda: not takes(subject, stolen))
            assert takes(subject, other)
            await execute(bus, revoke(user_id="ann"), "olga")
            await until(lambda: not takes(subject, other))
            await execute(bus, WithdrawRevocation(command.revocation_id), "olga")

    asyncio.run(run())


def test_a_notification_is_what_makes_it_quick(
    recorder: GroupCommitRecorder,
    another: GroupCommitRecorder,
    log_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("readapi.revocations.POLL_SECONDS", 100_000)
    subject, stolen = authenticator(), mint_token(SECRET, "ann")

    async def run() -> None:
        async with another_process(another, log_url, subject), open_bus(recorder) as bus:
            await execute(bus, revoke(user_id="ann"), "olga")
            await until(lambda: not takes(subject, stolen))

    asyncio.run(run())


def test_a_new_process_knows_them_before_its_first_request(recorder: GroupCommitRecorder) -> None:
    stolen = mint_token(SECRET, "ann")
    with_bus(recorder, lambda bus: execute(bus, revoke(user_id="ann"), "olga"))
    subject = authenticator()
    found = follower(recorder, subject)
    asyncio.run(found.refresh())
    assert not takes(subject, stolen)
    assert takes(subject, mint_token(SECRET, "bob"))
    (standing,) = found.standing
    assert (standing.user_id, standing.revoked_by, standing.reason) == ("ann", "olga", "stolen")


class Away:
    """A store that does not answer."""

    asked = 0

    def fetch(self, *args: Any) -> Any:
        self.asked += 1
        raise OperationalError("away")


def test_while_the_store_is_away_what_is_known_goes_on(recorder: GroupCommitRecorder) -> None:
    stolen = mint_token(SECRET, "ann")
    with_bus(recorder, lambda bus: execute(bus, revoke(user_id="ann"), "olga"))
    subject = authenticator()
    found = follower(recorder, subject)

    async def run() -> None:
        await found.refresh()
        found._recorder = away = Away()  # type: ignore[assignment]
        found._wake.set()
        following = asyncio.create_task(found.run())
        await until(lambda: away.asked)
        assert not takes(subject, stolen)
        await ended(following)

    asyncio.run(run())
    with pytest.raises(OperationalError):
        # Nothing is served by a process that could not ask.
        asyncio.run(follower(Away(), authenticator()).refresh())  # type: ignore[arg-type]


def test_an_unreadable_revocation_stops_a_start(recorder: GroupCommitRecorder) -> None:
    unknown = StoredEvent(STREAM_ID, 1, "revocations.everybody.v9", b"{}")
    recorder.insert_events([unknown])
    with pytest.raises(MapperDeserialisationError):
        asyncio.run(follower(recorder, authenticator()).refresh())


def test_what_no_token_can_outlive_is_dropped_from_memory(recorder: GroupCommitRecorder) -> None:
    with_bus(recorder, lambda bus: execute(bus, revoke(jti="t-1"), "olga"))
    now = [datetime.now(UTC)]
    subject = authenticator()
    found = follower(recorder, subject, clock=lambda: now[0])
    asyncio.run(found.refresh())
    assert subject.revoked.tokens == {"t-1"}
    now[0] += WEEK + timedelta(seconds=1)
    asyncio.run(found.refresh())
    assert (subject.revoked.tokens, list(found.standing)) == (frozenset(), [])


def test_the_second_revocation_of_a_user_holds(recorder: GroupCommitRecorder) -> None:
    first, second = revoke(user_id="ann"), revoke(user_id="ann")

    async def twice(bus: Any) -> None:
        await execute(bus, first, "olga")
        await execute(bus, second, "olga")

    with_bus(recorder, twice)
    subject = authenticator()
    found = follower(recorder, subject)
    asyncio.run(found.refresh())
    latest: dict[UUID, float] = {each.id: each.at.timestamp() for each in found.standing}
    assert list(latest) == [second.revocation_id, first.revocation_id]
    assert subject.revoked.users == {"ann": latest[second.revocation_id]}

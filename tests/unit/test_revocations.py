"""What a revocation decides, and when it is over."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from domain.errors import Invalid, NotFound
from domain.model import Origin
from domain.revocations import MAX_REASON, MAX_TOKEN_ID, Revocations
from tests.unit.given_when_then import AT, by, fact, given

OLGA = by("olga")
ONE, TWO = UUID(int=1), UUID(int=2)
WEEK = timedelta(days=7)
SAID: dict[str, Any] = {"reason": "stolen", "lifetime_seconds": 604_800}
TOKEN = fact(Revocations.TokenRevoked, OLGA, revocation_id=ONE, jti="t-1", **SAID)
USER = fact(Revocations.UserRevoked, OLGA, revocation_id=TWO, user_id="ann", **SAID)
WITHDRAWN = fact(Revocations.Withdrawn, OLGA, revocation_id=ONE)


def revoke_token(revocations: Revocations) -> None:
    revocations.revoke_token(ONE, "t-1", "stolen", WEEK, OLGA)


def revoke_user(revocations: Revocations) -> None:
    revocations.revoke_user(TWO, "ann", "stolen", WEEK, OLGA)


def test_a_token_is_revoked_once() -> None:
    standing = given(Revocations).when(revoke_token).then(TOKEN).standing
    assert (standing[ONE].jti, standing[ONE].user_id, standing[ONE].ends_at) == (
        "t-1",
        None,
        AT + WEEK,
    )
    given(Revocations, TOKEN).when(revoke_token).then()

    def again(revocations: Revocations) -> None:
        assert revocations.revoke_token(UUID(int=9), "t-1", "lost", WEEK, OLGA).id == ONE

    given(Revocations, TOKEN).when(again).then()


def test_a_user_is_revoked_each_time_anew() -> None:
    given(Revocations, USER).when(revoke_user).then()

    def later(revocations: Revocations) -> None:
        revocations.revoke_user(UUID(int=3), "ann", "stolen", WEEK, OLGA)

    anew = fact(Revocations.UserRevoked, OLGA, revocation_id=UUID(int=3), user_id="ann", **SAID)
    given(Revocations, USER).when(later).then(anew)


def test_a_revocation_is_taken_back_once() -> None:
    def withdraw(revocations: Revocations) -> None:
        revocations.withdraw(ONE, OLGA)

    assert given(Revocations, TOKEN).when(withdraw).then(WITHDRAWN).standing == {}
    given(Revocations, TOKEN, WITHDRAWN).when(withdraw).refused(NotFound, "no such revocation")


def test_what_no_token_can_outlive_is_dropped() -> None:
    later = Origin("olga", AT + WEEK, "c", "c")

    def much_later(revocations: Revocations) -> None:
        revocations.revoke_user(TWO, "ann", "stolen", WEEK, later)

    anew = fact(Revocations.UserRevoked, later, revocation_id=TWO, user_id="ann", **SAID)
    assert set(given(Revocations, TOKEN).when(much_later).then(anew).standing) == {TWO}


@pytest.mark.parametrize(
    ("jti", "reason"),
    [("", "x"), ("\u200b", "x"), ("x" * (MAX_TOKEN_ID + 1), "x"), ("x", " "), ("x", "r" * 501)],
)
def test_what_says_nothing_is_refused(jti: str, reason: str) -> None:
    assert MAX_REASON == 500

    def revoke(revocations: Revocations) -> None:
        revocations.revoke_token(ONE, jti, reason, WEEK, OLGA)

    field = "jti" if reason == "x" else "reason"
    given(Revocations).when(revoke).refused(Invalid, f"`{field}`", field=field)

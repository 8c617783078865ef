"""Tickets of live streams: for one video, for a minute, and nothing in them can be read."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from infra.http.auth import Identity, InvalidToken
from infra.http.tickets import MAX_TICKET_LENGTH, TICKET_SECONDS, StreamTicket, seal, unseal

KEY, OTHER_KEY = bytes(32), bytes([1]) * 32
VIDEO = uuid4()
NOW = 1_800_000_000.5
ANN = Identity("a" * 32, frozenset({"service"}))


def issued(holder: Identity = ANN) -> StreamTicket:
    return seal(KEY, VIDEO, holder, NOW)


@pytest.mark.parametrize("role", ["moderator", "admin", None])
def test_a_ticket_tells_who_holds_it_and_whether_that_is_a_moderator(role: str | None) -> None:
    holder = Identity("a" * 32, frozenset({role} if role else ()))
    found, at = unseal(KEY, VIDEO, issued(holder).text, NOW)
    assert (found.viewer, at) == (holder.viewer, int(NOW))
    # No other right comes with it.
    assert found.roles <= {"moderator"}


def test_it_ends_after_a_minute() -> None:
    ticket = issued()
    assert ticket.expires_at == datetime.fromtimestamp(int(NOW) + TICKET_SECONDS, UTC)
    unseal(KEY, VIDEO, ticket.text, int(NOW) + TICKET_SECONDS - 0.1)
    with pytest.raises(InvalidToken, match="expired"):
        unseal(KEY, VIDEO, ticket.text, int(NOW) + TICKET_SECONDS)


def test_it_is_for_one_video_and_one_installation() -> None:
    for key, video in ((KEY, uuid4()), (OTHER_KEY, VIDEO)):
        with pytest.raises(InvalidToken, match="not one for this stream"):
            unseal(key, video, issued().text, NOW)


@pytest.mark.parametrize("text", ["", "x", "é", "a" * MAX_TICKET_LENGTH, "====", "%%"])
def test_what_is_no_ticket_is_refused(text: str) -> None:
    with pytest.raises(InvalidToken):
        unseal(KEY, VIDEO, text, NOW)


def test_no_byte_can_be_changed() -> None:
    text = issued().text
    sealed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    for at in range(len(sealed)):
        changed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(InvalidToken):
            unseal(KEY, VIDEO, urlsafe_b64encode(changed).decode().rstrip("="), NOW)


def test_the_holder_cannot_be_read() -> None:
    sealed = urlsafe_b64decode(issued().text + "==")
    assert ANN.person.encode() not in sealed
    assert issued().text != issued().text

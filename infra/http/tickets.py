"""Tickets: what stands for a token in the URL of one live stream, for a minute.

`EventSource` sends no headers, and a token does not belong into a URL: URLs are logged. A ticket is
sealed (AES-256-GCM) with a key of the installation, so every process can open it, and nobody reads
the pseudonym in it or changes anything. It is good for the stream of one video only.
"""

from __future__ import annotations

import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from secrets import token_bytes
from struct import Struct
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from fastapi import Request

from infra.http.auth import (
    Authenticator,
    Identity,
    InvalidToken,
    ask,
    unauthenticated,
)
from infra.http.requests import client_address
from infra.security_log import SecurityEvent, record

TICKET_SECONDS = 60
MAX_TICKET_LENGTH = 1024
NONCE_BYTES = 12
HEAD = Struct(">q?")
"""When it was issued, in Unix seconds, and whether to a moderator."""


@dataclass(frozen=True, slots=True)
class StreamTicket:
    """A ticket as its holder gets it."""

    text: str
    expires_at: datetime


def seal(key: bytes, video_id: UUID, holder: Identity, now: float) -> StreamTicket:
    """Return a ticket for the stream of a video, valid for a minute from `now` (Unix seconds)."""
    issued, nonce = int(now), token_bytes(NONCE_BYTES)
    plain = HEAD.pack(issued, holder.is_moderator) + holder.person.encode()
    sealed = nonce + AESGCM(key).encrypt(nonce, plain, video_id.bytes)
    expires_at = datetime.fromtimestamp(issued + TICKET_SECONDS, UTC)
    return StreamTicket(urlsafe_b64encode(sealed).decode().rstrip("="), expires_at)


def unseal(key: bytes, video_id: UUID, ticket: str, now: float) -> tuple[Identity, int]:
    """Return who holds a ticket and when it was issued (Unix seconds); raise InvalidToken."""
    try:
        sealed = urlsafe_b64decode(ticket.encode("ascii") + b"=" * (-len(ticket) % 4))
        nonce, rest = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        plain = AESGCM(key).decrypt(nonce, rest, video_id.bytes)
    except (ValueError, InvalidTag) as error:
        raise InvalidToken("the ticket is not one for this stream") from error
    issued, is_moderator = HEAD.unpack_from(plain)
    if now >= issued + TICKET_SECONDS:
        raise InvalidToken("the ticket has expired; get a new one")
    person = plain[HEAD.size :].decode()
    return Identity(person, frozenset({"moderator"} if is_moderator else ())), issued


async def issue(request: Request, video_id: UUID, holder: Identity) -> StreamTicket:
    """Return a ticket for the stream of a video; raise Problem 503."""
    authenticator: Authenticator = request.app.state.authenticator
    return seal(await ask(authenticator.persons.ticket_key), video_id, holder, time.time())


async def holder_of(request: Request, ticket: str, video_id: UUID) -> Identity:
    """Return who holds a ticket; raise Problem 401, also where the holder's tokens are revoked."""
    authenticator: Authenticator = request.app.state.authenticator
    key, now = await ask(authenticator.persons.ticket_key), time.time()
    try:
        holder, issued = unseal(key, video_id, ticket, now)
        if authenticator.revoked.has({"iat": issued}, holder.person, now):
            raise InvalidToken("the ticket is revoked; get a new token")
    except InvalidToken as error:
        record(SecurityEvent.TOKEN_REFUSED, client_address(request.scope), reason=error.reason)
        raise unauthenticated(f"The ticket was refused: {error.reason}.") from error
    return holder

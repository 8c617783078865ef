"""How fresh a client asks an answer to be, and what it is told of that."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import Depends, Header, Request
from starlette.types import Scope

from engine.checkpoints import Freshness
from infra.http.requests import ADDED, add_header, header
from infra.http.shapes import BEGINNING, Position, encode_position, latest_position
from infra.metrics import counter

DEFAULT_TIMEOUT_MS = 2_000

MAX_TIMEOUT_MS = 30_000

MAX_TOKEN_LENGTH = 1_000

MIN_POSITION, TIMEOUT_MS = b"backlot-min-position", b"backlot-timeout-ms"

REACHED, STALE = b"backlot-position", b"backlot-stale-position"


STALE_ANSWERS = counter(
    "backlot_stale_answers",
    "Answers older than what was recorded before: a read model stands still, or comes too late.",
)


async def freshness(
    request: Request,
    backlot_min_position: Annotated[
        str | None,
        Header(
            alias="Backlot-Min-Position",
            description="A `Backlot-Position` received before, or several with commas: the answer "
            "includes those commands. Where an upgrade keeps it from that, "
            "`Backlot-Stale-Position` says how far it is.",
            max_length=MAX_TOKEN_LENGTH,
        ),
    ] = None,
    backlot_timeout_ms: Annotated[
        int,
        Header(
            alias="Backlot-Timeout-Ms",
            description=f"How long to wait for it, at most {MAX_TIMEOUT_MS} ms.",
            ge=0,
        ),
    ] = DEFAULT_TIMEOUT_MS,
) -> Freshness:
    """Return what the headers ask for; raise InvalidPosition."""
    return _freshness(request.scope, backlot_min_position, backlot_timeout_ms)


def freshness_of(scope: Scope) -> Freshness | None:
    """Return the same without the framework; None where that has to look at the headers."""
    token = header(scope, MIN_POSITION)
    if header(scope, TIMEOUT_MS) is not None or len(token or "") > MAX_TOKEN_LENGTH:
        return None
    return _freshness(scope, token, DEFAULT_TIMEOUT_MS)


def _freshness(scope: Scope, token: str | None, timeout_ms: int) -> Freshness:
    told: Position | None = None
    counted = False

    def tell(position: Position) -> None:
        # Of what one request reads, the oldest counts.
        nonlocal told
        if told is None or position.events < told.events:
            told = position
            scope.setdefault(ADDED, {})[REACHED] = encode_position(*position).encode()

    def admit(position: int) -> None:
        # What is read later in the same request is never older, so the first one counts.
        add_header(scope, STALE, encode_position(position))
        fall_behind(position)

    def fall_behind(position: int) -> None:
        nonlocal counted
        if not counted:
            counted = True
            STALE_ANSWERS.inc()
        tell(Position(position))

    wanted = BEGINNING if token is None else latest_position(token)
    deadline = time.monotonic() + min(timeout_ms, MAX_TIMEOUT_MS) / 1000
    return Freshness(wanted, deadline, admit, fall_behind, tell)


Fresh = Annotated[Freshness, Depends(freshness)]

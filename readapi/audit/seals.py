"""The seals over the log, where they are anchored, and proofs that an event is in it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Path, Query, Request, Response

from engine.archive.inclusion import ProofRefused, make_proof
from engine.connections import in_thread
from engine.log import END_OF_LOG
from engine.seals.anchors import AnchorStore, StampedSeals
from engine.seals.chain import ListedSeal, newest_seals
from engine.seals.places import AnchorsUnusable
from engine.seals.proofs import Proofs
from infra.http.auth import Admin, Auditor
from infra.http.problems import Problem, problems
from infra.http.responses import NOT_MODIFIED, conditional_wire
from infra.http.shapes import Time, Wire
from infra.security_log import SecurityEvent, record
from readapi.audit.routes import Integrity
from readapi.operations import ask
from readapi.pages import IfNoneMatch, Page, Paged, decode_cursor
from readapi.queries import Fresh, Read

log = structlog.get_logger(__name__)

KIND = "seals"


class SealEntry(Wire):
    """A seal over the events from `firstPosition` to `lastPosition`; hashes are hexadecimal.

    `signature` is in base64, by the key `keyId`. `anchored`: one of the places outside has it, or a
    later one, which proves it. `stamped`: a time-stamp server has signed it; left out where that
    is so long ago that the newest anchors don't tell.
    """

    number: int
    first_position: int
    last_position: int
    sealed_at: Time
    hash: str
    previous_hash: str
    signature: str | None = None
    key_id: str | None = None
    anchored: bool
    stamped: bool | None = None


class SealAcceptance(Wire):
    """An operator who went on from a seal (0: from none) although later ones were known."""

    number: int
    by: str
    at: str
    reason: str


class AnchorPlace(Wire):
    """A place outside the database, and up to which seal it has them; `error` where it is away."""

    place: str
    newest_seal: int | None = None
    last_position: int | None = None
    hash: str | None = None
    stamped_seal: int | None = None
    acceptances: list[SealAcceptance]
    error: str | None = None


class EventProof(Wire):
    """A proof that an event is in the log, as `backlot events prove` writes and checks it."""

    backlot_proof: int
    event: dict[str, Any]
    seal: dict[str, Any]
    path: list[str] | None = None
    leaves: str | None = None
    head: dict[str, Any] | None = None
    head_path: list[str] | None = None


async def _proofs(request: Request) -> Proofs:
    integrity: Integrity = request.app.state.integrity
    return integrity.proofs


KnownOutside = Annotated[Proofs, Depends(_proofs)]
router = APIRouter(prefix="/audit", tags=["audit"])


@router.get(
    "/seals",
    response_model=Page[SealEntry],
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED,
    summary="The seals over the log, newest first",
)
async def list_seals(
    request: Request,
    queries: Read,
    caller: Auditor,
    fresh: Fresh,
    proofs: KnownOutside,
    page: Paged,
    if_none_match: IfNoneMatch = None,
) -> Response:
    await queries.confirm(fresh)
    before = decode_cursor(KIND, page.cursor)
    rows = await ask(queries, lambda conn: newest_seals(conn, before, page.rows))
    anchored, stamped = await in_thread(_known, proofs.outside.anchors)
    shown, following = page.cut(KIND, rows, lambda row: row.number)
    items = [_entry(row, anchored, stamped) for row in shown]
    return await conditional_wire(request, Page[SealEntry](items=items, next_cursor=following))


def _known(places: Sequence[AnchorStore]) -> tuple[int, list[StampedSeals]]:
    """Return up to which seal the places have them, and what they say of time stamps.

    What can't be read says nothing: `GET /audit/anchors` tells that.
    """
    anchored, stamped = 0, []
    for place in places:
        try:
            newest = place.newest()
            anchored = max(anchored, newest.number if newest else 0)
            stamped.append(place.stamped())
        except AnchorsUnusable as error:
            log.warning("anchors_not_read", place=place.name, error=str(error))
    return anchored, stamped


def _entry(seal: ListedSeal, anchored: int, stamped: Sequence[StampedSeals]) -> SealEntry:
    told = [seal.number in each.numbers for each in stamped if each.first <= seal.number]
    return SealEntry(
        number=seal.number,
        first_position=seal.first,
        last_position=seal.last,
        sealed_at=seal.sealed_at,
        hash=seal.hash.hex(),
        previous_hash=seal.previous.hex(),
        signature=None if seal.signature is None else b64encode(seal.signature).decode(),
        key_id=seal.key_id,
        anchored=seal.number <= anchored,
        # Nobody has stamped anything where there is no place for stamps.
        stamped=any(told) if told or not stamped else None,
    )


@router.get(
    "/seals/{number}/proof",
    response_model=EventProof,
    responses=problems(401, 403, 404, 422, 503) | NOT_MODIFIED,
    summary="A proof that an event is in the log, leading to this seal",
)
async def get_proof(
    number: Annotated[int, Path(ge=1, lt=END_OF_LOG, examples=[1])],
    position: Annotated[int, Query(ge=1, lt=END_OF_LOG, description="Of the event.")],
    request: Request,
    queries: Read,
    caller: Admin,
    fresh: Fresh,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """It holds the event's bytes exactly as they are stored: hence for admins alone.

    404 where there is no such event or no such seal, where the seal is older than the event, and
    where the event is not sealed yet.
    """
    await queries.confirm(fresh)
    told = {"path": "/audit/seals/{number}/proof", "actor": "", "position": position}
    record(SecurityEvent.PERSONAL_DATA_READ, caller.person, **told)
    try:
        found = await ask(queries, lambda conn: make_proof(conn, position, number))
    except ProofRefused as error:
        raise Problem(404, "not-found", str(error)) from error
    return await conditional_wire(request, EventProof.model_validate(found))


@router.get(
    "/anchors",
    response_model=Page[AnchorPlace],
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED,
    summary="The places outside the database that have seals",
)
async def list_anchors(
    request: Request,
    queries: Read,
    caller: Auditor,
    fresh: Fresh,
    proofs: KnownOutside,
    if_none_match: IfNoneMatch = None,
) -> Response:
    await queries.confirm(fresh)
    items = await in_thread(lambda: [_place(each) for each in proofs.outside.anchors])
    return await conditional_wire(request, Page[AnchorPlace](items=items))


def _place(place: AnchorStore) -> AnchorPlace:
    """Return what a place has; one that can't be read says why."""
    try:
        newest, stamped = place.newest(), place.stamped().numbers
        accepted = [
            SealAcceptance(number=each.number, **each.acceptance._asdict())
            for each in place.acceptances()
            if each.acceptance is not None
        ]
    except AnchorsUnusable as error:
        return AnchorPlace(place=place.name, acceptances=[], error=str(error))
    told = AnchorPlace(place=place.name, acceptances=accepted)
    if newest is not None:
        told.newest_seal, told.last_position = newest.number, newest.last
        told.hash = newest.hash.hex()
    told.stamped_seal = max(stamped, default=None)
    return told

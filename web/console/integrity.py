"""Integrity: the seals over the log, their anchors, proofs, and whether all is as it was sealed."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson
from starlette.responses import Response

from web.api import known, path
from web.console.outcomes import found_or_none
from web.visits import ADMIN, AUDITORS, Visit, page

LIMIT = 100
# Of the ribbon, in its own units.
WIDTH, LEAST = 1000.0, 4.0


class SealPiece(NamedTuple):
    """A seal on the ribbon: where it begins, how wide it is, and how much it is worth."""

    number: int
    x: float
    width: float
    kind: str
    told: str


def ribbon(seals: list[dict[str, Any]]) -> list[SealPiece]:
    """Return the seals, the oldest first, as wide as they have events, and wide enough to see."""
    ordered = sorted(seals, key=lambda seal: seal["number"])
    events = [seal["lastPosition"] - seal["firstPosition"] + 1 for seal in ordered]
    free = max(0.0, WIDTH - LEAST * len(ordered))
    total, x, pieces = sum(events) or 1, 0.0, []
    for seal, count in zip(ordered, events, strict=True):
        width = LEAST + free * count / total
        kind = "anchored" if seal["anchored"] else "signed" if seal.get("signature") else "plain"
        told = f"Seal {seal['number']}: {count:,} events, {kind}"
        pieces.append(SealPiece(seal["number"], round(x, 2), round(width, 2), kind, told))
        x += width
    return pieces


async def show(visit: Visit) -> Response:
    seals = known(await visit.api.get("/audit/seals", limit=LIMIT, cursor=visit.query("cursor")))
    anchors = known(await visit.api.get("/audit/anchors"))
    pieces = ribbon(seals["items"])
    shown = {"seals": seals, "anchors": anchors, "pieces": pieces, "width": WIDTH}
    return visit.page("console/integrity.html", **shown)


async def verify(visit: Visit) -> Response:
    """Show what was proved; `full=1` proves everything now, from the first event.

    Where an event is not what was sealed it is shown as it is now, as far as it can be read.
    """
    full = "true" if visit.query("full") else None
    found = known(await visit.api.get("/audit/verify", full=full))
    position = found["fault"] and found["fault"]["position"]
    event = None
    if position:
        event = known(await found_or_none(visit, path("/audit/events/{}", position)))
    return visit.page("console/verdict.html", found=found, event=event)


async def prove(visit: Visit) -> Response:
    """Give the proof of an event as a file, for `backlot events prove --check`."""
    number, position = visit.query("seal") or "0", visit.query("position") or "0"
    found = known(await visit.api.get(path("/audit/seals/{}/proof", number), position=position))
    name = f"attachment; filename=event-{found['event'].get('position', 'proof')}.proof.json"
    body = orjson.dumps(found, option=orjson.OPT_INDENT_2)
    return Response(body, media_type="application/json", headers={"Content-Disposition": name})


ROUTES = [
    page("/console/integrity", show, AUDITORS),
    page("/console/integrity/verify", verify, ADMIN),
    page("/console/integrity/proof", prove, ADMIN),
]

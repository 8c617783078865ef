"""The log: events by all that is known of them, streams version by version, traces of requests."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from infra.cancellation import together
from web.api import Members, known, path
from web.templating import command_line
from web.visits import AUDITORS, Visit, page

LIMIT, TRACED = 50, 200
# Of a stream at once, and in all: so far its slider goes.
VERSIONS, MOST_VERSIONS = 200, 1000
# The names of the API, so that a link of a page is a call of the API too.
FILTERS = ("type", "aggregate", "actor", "stream", "correlationId", "from", "to", "before", "order")
OPTIONS = {"correlationId": "correlation"}
"""How `backlot events list` calls them, where that is another word."""


def filters_of(visit: Visit) -> dict[str, str]:
    """Return the filters of a page's URL, those that are set."""
    given = ((name, visit.query(name)) for name in FILTERS)
    return Members({name: value for name, value in given if value is not None})


def link(filters: Mapping[str, str], **changed: str | None) -> str:
    """Return the page with these filters and changes; None takes one away."""
    wanted = {name: value for name, value in {**filters, **changed}.items() if value}
    return f"/console/log?{urlencode(wanted)}" if wanted else "/console/log"


def command(filters: Mapping[str, str]) -> str:
    """Return the command line that lists the same."""
    given = ((f"--{OPTIONS.get(name, name)}", value) for name, value in filters.items())
    return command_line("backlot events list", chain.from_iterable(given))


async def _head(visit: Visit) -> int:
    """Return the end of the log, as all open consoles are told it."""
    return int((await visit.api.get("/admin/overview"))["log"]["head"])


async def _found(visit: Visit, head: int) -> dict[str, Any]:
    """Return the events that the page shows; `head` is from before they are read."""
    filters, cursor = filters_of(visit), visit.query("cursor")
    found = known(await visit.api.get("/audit/events", limit=LIMIT, cursor=cursor, **filters))
    return {"filters": filters, "found": found, "link": link, "cursor": cursor, "head": head}


async def list_events(visit: Visit) -> Response:
    head = await _head(visit)
    shown, stats = await together(_found(visit, head), visit.api.get("/audit/stats"))
    # What comes is on the first page of what is newest alone.
    still = bool(shown["cursor"]) or shown["filters"].get("order") == "asc"
    return visit.page(
        "console/log.html",
        **shown,
        still=still,
        stats=known(stats),
        command=command(shown["filters"]),
        live=f"/console/log/rows?{urlencode(shown['filters'])}",
    )


async def list_rows(visit: Visit) -> Response:
    """Show the events anew where the log has grown; each look is told to the security log."""
    head = await _head(visit)
    if visit.query("head") == str(head):
        return Response(status_code=204)
    return visit.page("console/log_rows.html", **await _found(visit, head))


async def show_event(visit: Visit) -> Response:
    position = visit.asked("position")
    event = known(await visit.api.get(path("/audit/events/{}", position)))
    return visit.page("console/event.html", event=event, link=link)


async def show_stream(visit: Visit) -> Response:
    """Show a stream; `version` is where the slider stands, at the end without it."""
    stream, version = visit.asked("stream"), visit.query("version")
    where = path("/audit/streams/{}", stream)
    at = await _history(visit, where, version)
    shown: dict[str, Any] = {"stream": stream, "at": at}
    if not visit.is_fragment:
        shown["whole"] = at if version is None else await _history(visit, where, None)
    template = "console/stream_state.html" if visit.is_fragment else "console/stream.html"
    return visit.page(template, **shown)


async def _history(visit: Visit, where: str, version: str | None) -> Members:
    """Return a stream up to a version, with as many of its events as a slider has."""
    found: Members = known(await visit.api.get(where, atVersion=version, limit=VERSIONS))
    while found["nextCursor"] and len(found["items"]) < MOST_VERSIONS:
        asked = {"atVersion": version, "limit": VERSIONS, "cursor": found["nextCursor"]}
        more = known(await visit.api.get(where, **asked))
        found = Members({**more, "items": found["items"] + more["items"]})
    return found


async def show_trace(visit: Visit) -> Response:
    request_id = visit.asked("request_id")
    if "/" in request_id:
        # No path of the API holds it.
        return visit.leave(link({"correlationId": request_id}))
    trace = known(await visit.api.get(path("/audit/trace/{}", request_id), limit=TRACED))
    return visit.page("console/trace.html", trace=trace)


async def find_trace(visit: Visit) -> Response:
    """Lead from a request id that somebody was told to its trace."""
    return visit.leave(path("/console/trace/{}", visit.query("requestId") or "-"))


ROUTES = [
    page("/console/log", list_events, AUDITORS),
    page("/console/log/rows", list_rows, AUDITORS),
    page("/console/events/{position:int}", show_event, AUDITORS),
    page("/console/streams/{stream}", show_stream, AUDITORS),
    page("/console/trace", find_trace, AUDITORS),
    page("/console/trace/{request_id:path}", show_trace, AUDITORS),
]

"""What operators ask for is done by another process: how a page tells what came of it.

A request is answered with an operation. The browser goes back to the page that it came from, with
the operation in `asked`; a part of that page follows it until it has ended, and then loads the
page again with the outcome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.responses import Response

from web.api import ApiProblem, path
from web.login import own_page
from web.visits import ADMIN, Form, Visit, page

ASKED = "asked"
PICKED = "pick:"
ENDED_WELL = frozenset({"done"})
TOLD = {
    "done": "Done",
    "failed": "Failed",
    "refused": "Refused",
    "cancelled": "Cancelled",
}


def reason_of(form: Form) -> dict[str, str]:
    """Return the reason of a form as a member of a body; nothing where none was given."""
    reason = form.get("reason", "").strip()
    return {"reason": reason} if reason else {}


def picked(form: Form) -> list[str]:
    """Return what is acted on: the thing whose button was pressed, else what was ticked."""
    if only := form.get("only"):
        return [only]
    return [name.removeprefix(PICKED) for name in form if name.startswith(PICKED)]


def nothing_picked(visit: Visit, back: str) -> Response:
    """Send the browser back to a list, of which nothing was ticked."""
    return visit.leave(visit.back(back), "Nothing was ticked.", bad=True)


async def ask(
    visit: Visit, requests: Sequence[tuple[str, Mapping[str, Any]]], back: str, told: str
) -> Response:
    """Ask for operations, each a path with a body, and follow the last one on the page before.

    They are carried out in the order in which they were recorded.
    """
    operation = ""
    for where, body in requests:
        operation = (await visit.api.post(where, dict(body)))["operationId"]
    return visit.leave(with_query(visit.back(back), asked=operation), told)


def with_query(where: str, **given: str) -> str:
    """Return a path of ours with these parameters in place of those that it had."""
    parts = urlsplit(where)
    query = {**dict(parse_qsl(parts.query)), **given}
    return f"{parts.path}?{urlencode(query)}"


def without(where: str, name: str) -> str:
    """Return a path of ours without one of its parameters."""
    parts = urlsplit(where)
    query = [(key, value) for key, value in parse_qsl(parts.query) if key != name]
    return f"{parts.path}?{urlencode(query)}" if query else parts.path


async def outcome(visit: Visit) -> Response:
    """Tell how far an operation is; once it has ended, load the page behind it with the outcome."""
    operation = await visit.api.get(path("/operations/{}", visit.asked("operation_id")))
    if operation.get("finishedAt") is None:
        return visit.page("console/outcome.html", operation=operation)
    back = without(own_page(visit.back("/console/operations")), ASKED)
    return visit.leave(back, summary(operation), bad=operation["status"] not in ENDED_WELL)


def summary(operation: Mapping[str, Any]) -> str:
    """Return in a line what came of an operation."""
    result = operation.get("result") or {}
    told = TOLD.get(operation["status"], operation["status"])
    why = result.get("error") or result.get("reason")
    if not why:
        numbers = (f"{name} {value}" for name, value in result.items() if type(value) is int)
        why = ", ".join(numbers)
    line = f"{told}: {operation['action']} {operation['subject']}"
    return f"{line} ({why})" if why else line


async def operation(visit: Visit) -> Response:
    """Show one operation with all that is known of it."""
    found = await visit.api.get(path("/operations/{}", visit.asked("operation_id")))
    return visit.page("console/operation.html", operation=found, told=summary(found))


async def found_or_none(visit: Visit, where: str, **params: Any) -> Any:
    """Return what the API has there; None where it says that there is nothing."""
    try:
        return await visit.api.get(where, **params)
    except ApiProblem as problem:
        if problem.status != 404:
            raise
        return None


ROUTES = [
    page("/console/operations/{operation_id}/outcome", outcome, ADMIN),
    page("/console/operations/{operation_id}", operation, ADMIN),
]

"""Projections: how far each is, and its replays, from what they would cost to what they changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from starlette.responses import Response
from starlette.routing import Route

from web.api import path
from web.console.outcomes import ask, found_or_none, reason_of
from web.visits import ADMIN, Form, Visit, action, page

HOME = "/console/projections"
DIFFERENCES_SHOWN = 20
PARKED_SHOWN = 20
MOST_WORKERS = 32
# States of a replay that has not ended.
UNDER_WAY = frozenset({"building", "catching-up", "comparing", "waiting"})


class Act(NamedTuple):
    """What an operator may do to a projection; `command` follows `backlot projections`."""

    label: str
    command: str
    told: str
    kind: str = ""
    confirm: str = ""
    replay: bool = False
    """Whether it is about the replay under way, and not about the projection itself."""


ACTS: Mapping[str, Act] = {
    "pause": Act("Pause", "pause {name}", "Asked to rest."),
    "resume": Act("Resume", "resume {name}", "Asked to go on."),
    "pause-replay": Act(
        "Pause the replay", "pause {name} --replay", "Its replay is asked to rest.", replay=True
    ),
    "resume-replay": Act(
        "Go on with the replay", "resume {name} --replay", "Its replay is asked to go on.",
        replay=True,
    ),
    "cancel": Act(
        "Give the replay up", "cancel {name}", "Its replay is asked to end.", "bad",
        "Give the replay up, and drop what it has built?", replay=True,
    ),
    "confirm": Act(
        "Switch although they differ", "confirm {name}", "Asked to switch.", "",
        "Put the new copy in the place of the live one, with the differences shown?", replay=True,
    ),
    "rollback": Act(
        "Roll back", "rollback {name}", "Asked to switch back.", "bad",
        "Bring the previous copy up to date and make it the live one again?",
    ),
    "drop-old": Act(
        "Drop the previous copy", "drop-old {name}", "Asked to drop the previous copy.", "bad",
        "Drop the previous copy? A rollback is not possible afterwards.",
    ),
    "verify": Act(
        "Verify", "verify {name}", "A copy is built and compared; nothing is changed.", "plain"
    ),
    "completeness": Act(
        "Prove completeness", "completeness {name}", "Every event is accounted for.", "plain"
    ),
}  # fmt: skip


def acts_of(projection: Mapping[str, Any]) -> list[str]:
    """Return what is possible in the state of a projection, but for a replay."""
    rests = projection["status"] in ("paused", "stopped")
    possible = ["resume" if rests else "pause"]
    replay = projection.get("replay")
    if replay is not None and is_under_way(replay):
        possible += ["confirm"] if replay["state"] == "waiting" else []
        possible += ["resume-replay" if replay["paused"] else "pause-replay", "cancel"]
    else:
        possible += ["verify", "completeness"]
        if any(copy["kind"] == "previous" for copy in projection["copies"]):
            possible += ["rollback", "drop-old"]
    return possible


def is_under_way(replay: Mapping[str, Any]) -> bool:
    """Return whether a replay has not ended."""
    return replay["state"] in UNDER_WAY


def state_of(projection: Mapping[str, Any]) -> str:
    """Return what decides which forms a page shows: a page keeps them while it stays the same."""
    replay = projection.get("replay") or {}
    copies = ",".join(f"{copy['kind']}{copy['version']}" for copy in projection["copies"])
    parts = (
        projection["status"], projection.get("errorPosition"), projection["parked"], copies,
        replay.get("id"), replay.get("state"), replay.get("paused"),
    )  # fmt: skip
    return ":".join(map(str, parts))


async def projections(visit: Visit) -> Response:
    return visit.page("console/projections.html", projections=await _all(visit))


async def projections_live(visit: Visit) -> Response:
    return visit.page("console/projections_live.html", projections=await _all(visit))


async def _all(visit: Visit) -> Sequence[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = (await visit.api.get("/projections"))["items"]
    return found


async def projection(visit: Visit) -> Response:
    return visit.page("console/projection.html", **await _one(visit, with_acts=True))


async def projection_live(visit: Visit) -> Response:
    """Return what moves, and the forms only where other ones are possible now.

    Whoever writes a reason just then keeps it.
    """
    return visit.page("console/projection_live.html", **await _one(visit, with_acts=False))


async def _one(visit: Visit, *, with_acts: bool) -> dict[str, Any]:
    name = visit.asked("name")
    found = await visit.api.get(path("/projections/{}", name))
    replay = found.get("replay")
    state = state_of(found)
    shown: dict[str, Any] = {
        "projection": found,
        "replay": replay,
        "under_way": replay is not None and is_under_way(replay),
        "head": found["position"] + found["lagEvents"],
        "state": state,
        "acts": None,
    }
    if with_acts or visit.query("state") != state:
        shown["acts"] = [(each, ACTS[each]) for each in acts_of(found)]
        shown["estimate"] = await found_or_none(visit, path("/projections/{}/estimate", name))
        shown["parked"] = await _parked(visit, found)
        shown["differences"] = await _differences(visit, name, replay)
    return shown


async def _parked(visit: Visit, found: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    if not found["parked"]:
        return ()
    where = path("/projections/{}/parked", found["name"])
    listed = (await visit.api.get(where, limit=100))["items"]
    return [each for each in listed if each["status"] == "parked"][:PARKED_SHOWN]


async def _differences(visit: Visit, name: str, replay: Mapping[str, Any] | None) -> Any:
    if replay is None or not (replay.get("difference") or {}).get("differs"):
        return None
    where = path("/projections/{}/differences", name)
    cursor = visit.query("cursor")
    return await found_or_none(visit, where, limit=DIFFERENCES_SHOWN, cursor=cursor)


def _action(name: str, act: Act) -> Route:
    called = name.removesuffix("-replay")

    async def asked(visit: Visit, form: Form) -> Response:
        of = visit.asked("name")
        body: dict[str, Any] = reason_of(form)
        if name.endswith("-replay"):
            body["replay"] = True
        requests = [(path(f"/projections/{{}}/{called}", of), body)]
        return await ask(visit, requests, f"{HOME}/{of}", act.told)

    return action(f"{HOME}/{{name}}/{name}", asked, ADMIN)


async def replay(visit: Visit, form: Form) -> Response:
    """Begin a replay; what it takes was told beside the form."""
    name = visit.asked("name")
    body: dict[str, Any] = reason_of(form)
    workers = form.get("workers", "")
    if workers.isdecimal() and 1 <= int(workers) <= MOST_WORKERS:
        body["workers"] = int(workers)
    if form.get("yes"):
        body["yes"] = True
    where = path("/projections/{}/replay", name)
    # It may take long: the page itself shows how far it is.
    await visit.api.post(where, body)
    return visit.leave(f"{HOME}/{name}", "The replay begins.")


async def park(visit: Visit, form: Form) -> Response:
    """Set aside the event in front of which a projection stands, or all that fail like it."""
    name = visit.asked("name")
    body: dict[str, Any] = reason_of(form)
    if form.get("all") and form.get("position", "").isdecimal():
        body["allLike"] = int(form["position"])
    requests = [(path("/projections/{}/park", name), body)]
    return await ask(visit, requests, f"{HOME}/{name}", "Asked to go on without it.")


async def drop_look(visit: Visit, form: Form) -> Response:
    name, position = visit.asked("name"), form.get("position", "")
    body = {**reason_of(form), "position": int(position) if position.isdecimal() else 0}
    requests = [(path("/projections/{}/drop-look", name), body)]
    return await ask(visit, requests, f"{HOME}/{name}", "Asked to drop the look.")


Does = Callable[[Visit, Form], Awaitable[Response]]
OTHERS: Mapping[str, Does] = {"replay": replay, "park": park, "drop-look": drop_look}

ROUTES = [
    page(HOME, projections, ADMIN),
    page(f"{HOME}/live", projections_live, ADMIN),
    page(f"{HOME}/{{name}}", projection, ADMIN),
    page(f"{HOME}/{{name}}/live", projection_live, ADMIN),
    *(_action(name, act) for name, act in ACTS.items()),
    *(action(f"{HOME}/{{name}}/{name}", does, ADMIN) for name, does in OTHERS.items()),
]

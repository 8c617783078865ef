"""Projections, replays and parked events in lines for people."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from typing import Any

import psycopg

from backlot.database import database_at_hand, persons_at_hand
from backlot.features import read_models
from backlot.output import change_lines, printable, table
from backlot.signals import run
from engine.overview import LOOK_SECONDS, Rates
from engine.parked_events import remedy
from engine.replay.records import Purpose, Replay, ReplayState
from infra.http.shapes import name_persons
from infra.postgres.connection import UNHURRIED, open_async_connection
from infra.settings import Settings
from readapi.projection_status import ProjectionStatus, ReplayStatus, statuses

SHOWN_KEYS = 20


def as_table(found: Collection[ProjectionStatus]) -> Iterator[str]:
    """Yield all projections, one a line, and below what some of them need."""
    headings = ("projection", "status", "position", "lag", "parked", "replay")
    yield from table(headings, map(_row, found))
    needs = {each.name: in_trouble(each) for each in found}
    yield from (f"{name}: {need}" for name, need in needs.items() if need)


def _row(each: ProjectionStatus) -> tuple[object, ...]:
    replay = _short(each.replay) if each.replay and not each.replay.finished_at else "-"
    return each.name, each.status, each.position, each.lag_events, each.parked, replay


def as_lines(found: ProjectionStatus) -> Iterator[str]:
    """Yield one projection with its copies and its replay."""
    yield f"{found.name}, version {found.version}: {found.status}"
    if found.error:
        at = f" (position {found.error_position})" if found.error_position else ""
        yield f"  error: {found.error}{at}"
    rate = "" if found.rate is None else f", {found.rate:,.0f} positions/s"
    behind = f"{found.lag_events} behind, {found.lag_seconds:.1f} s"
    yield f"  position {found.position} ({behind}{rate}), {found.parked} parked"
    for copy in found.copies:
        where = f"at {copy.position}, version {copy.version}, {copy.status}"
        yield f"  copy {copy.schema_name} ({copy.kind}) {where}"
    if found.replay is not None:
        yield f"  replay {found.replay.id}: {_short(found.replay)}"
        if found.replay.error:
            yield f"    error: {found.replay.error}"


def in_trouble(found: ProjectionStatus) -> str | None:
    """Return what is wrong with a projection, where, and what to do; None when it is in order."""
    replay = found.replay
    if replay is not None and replay.finished_at is None:
        where = f"at position {replay.position}"
        if replay.error is not None:
            again = f"`backlot projections resume {found.name} --replay` tries again"
            return f"its replay stopped {where}: {replay.error}; {again}, {_given_up(found.name)}"
        if replay.state == ReplayState.WAITING and not replay.paused:
            yes = f"`backlot projections confirm {found.name}` switches"
            return f"its replay differs {where}; {yes}, {_given_up(found.name)}"
    elif found.status == "outdated":
        return (
            f"replay needed, its rows are of another version at position {found.position}: "
            f"`backlot projections replay {found.name}`"
        )
    if found.status != "stopped":
        return None
    at = found.error_position or found.position
    return f"stopped at position {at}: {found.error}; {remedy(found.name)}"


def _given_up(name: str) -> str:
    return f"`backlot projections cancel {name}` gives it up"


def _short(replay: ReplayStatus) -> str:
    halted = ", paused" if replay.paused and not replay.finished_at else ""
    where, eta = f"{replay.position}/{replay.target}", replay.eta_seconds
    left = "" if eta is None else f", {replay.rate:,.0f} positions/s, {eta:.0f} s left"
    return f"{replay.purpose} {replay.state}{halted} at {where}{left}"


def told(replay: Replay) -> str:
    """Return in one line how a replay stands now that nobody works on it."""
    name, at = replay.name, f"at position {replay.position}"
    events = f"{replay.events_applied:,} events"
    if replay.finished:
        match replay.state:
            case ReplayState.SWITCHED if replay.purpose is Purpose.ROLLBACK:
                return f"{name}: the previous copy is the live one again"
            case ReplayState.SWITCHED:
                back = f"`backlot projections rollback {name}` goes back"
                return f"{name}: replayed {events} and switched {at}; {back}"
            case ReplayState.KEPT:
                return f"{name}: as it was {at}, in the schema {replay.schema} ({events})"
            case ReplayState.VERIFIED:
                return f"{name}: rebuilt from {events}, compared {at}"
            case _:
                return f"{name}: {replay.state}{f': {replay.error}' if replay.error else ''}"
    if replay.state is ReplayState.WAITING:
        again = f"`backlot projections replay {name} --yes`"
        yes = f"{again} or `backlot projections confirm {name}` switches"
        no = f"`backlot projections cancel {name}` gives the new one up"
        return f"{name}: the copies differ {at}, and nothing was switched; {yes}, {no}"
    on = f"`backlot projections replay {name}` goes on, `backlot projections cancel {name}` ends it"
    why = f" ({replay.error})" if replay.error else ""
    return f"{name}: the replay rests {at}{why}; {on}"


def differences(difference: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the keys of rows that differ, the first by name; nothing when none was compared."""
    if difference is None:
        return
    if not difference["differs"]:
        yield "no row differs"
        return
    total = difference["total"]
    yield "1 row differs" if total == 1 else f"{total} rows differ"
    for each in difference["tables"]:
        yield from (f"  {each['table']}: {what}" for what in each["structure"])
    for key in difference["keys"][:SHOWN_KEYS]:
        named = ", ".join(f"{column}={value}" for column, value in key["key"].items())
        yield printable(f"  {key['table']}: {named} is {key['kind']}{_columns(key)}")
        for column, values in sorted(key.get("changes", {}).items()):
            yield from change_lines(f"    {column}", *values)
    if total > min(len(difference["keys"]), SHOWN_KEYS):
        yield "  … and more: `--json` names up to 100"


def _columns(key: Mapping[str, Any]) -> str:
    """Return the columns that differ, where nobody knows their values any more."""
    return f" in {', '.join(key['columns'])}" if "columns" in key and "changes" not in key else ""


def accounted(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what became of every position, from a Completeness as a dictionary."""
    state = "complete" if found["complete"] else "NOT complete"
    numbers = ", ".join(f"{found[name]} {name}" for name in ("applied", "skipped", "parked"))
    yield (
        f"{found['projection']}: {state} up to position {found['position']}: {numbers}, "
        f"{found['discarded']} discarded"
    )
    for fault in found["faults"]:
        yield f"  positions {fault['firstPosition']} to {fault['lastPosition']}: {fault['detail']}"
    if found["remedy"]:
        yield f"  {found['remedy']}"


def read_statuses(settings: Settings, *, twice: bool = False) -> dict[str, ProjectionStatus]:
    """Return every projection by name; looked at twice, a second apart, they have a rate.

    Raise DatabaseAway.
    """
    with database_at_hand(psycopg.Error), closing(persons_at_hand(settings)) as persons:
        found = run(_read(persons.database_url, twice=twice))
        name_persons(found.values(), persons)
        return found


async def _read(url: str, *, twice: bool) -> dict[str, ProjectionStatus]:
    models, rates = read_models().by_name(), Rates()
    async with await open_async_connection(url, "operator", UNHURRIED) as conn:
        found = await statuses(conn, models, rates)
        if twice:
            await asyncio.sleep(LOOK_SECONDS)
            found = await statuses(conn, models, rates)
        return found

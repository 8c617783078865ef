"""How a projection stands, its copies and its replay: the same over HTTP and in the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from uuid import UUID

from psycopg import AsyncConnection
from pydantic import Field

from engine.overview import Copy, CopyProgress, Rates, overview
from engine.projection import Projection
from engine.projection_subscription import why_outdated
from engine.replay.records import Replay, replays_async
from infra.http.shapes import Time, Wire

Kind = Literal["live", "previous", "building", "look", "verifying", "superseded"]

KINDS: Mapping[str, Kind] = {
    "": "live",
    "__previous": "previous",
    "__next": "building",
    "__at_": "look",
    "__verify_": "verifying",
}


class CopyStatus(Wire):
    """One copy of a projection, which lies in a PostgreSQL schema of its own."""

    schema_name: Annotated[str, Field(alias="schema")]
    kind: Kind
    version: int
    status: str
    position: int
    parked: int


class ReplayStatus(Wire):
    """A replay: `target` is the position that is to be reached, which moves while the log grows.

    `state` is building, catching-up, comparing, waiting (for a confirmation of `difference`),
    switched, kept, verified, cancelled or failed; `rate` is in positions per second.
    """

    id: int
    operation_id: UUID
    purpose: str
    state: str
    paused: bool
    schema_name: Annotated[str, Field(alias="schema")]
    version: int
    position: int
    target: int
    events: int
    rate: float | None = None
    eta_seconds: float | None = None
    workers: int
    requested_by: str
    started_at: Time
    updated_at: Time
    finished_at: Time | None = None
    difference: dict[str, Any] | None = None
    error: str | None = None


class ProjectionStatus(Wire):
    """How far a projection has come.

    `status` is running, paused, stopped (by an event that it can't apply, at `errorPosition`) or
    outdated (its rows were made by another version of the code); `active` says whether any
    process runs it now. Lag is in positions of the log, and the age of the oldest one in seconds;
    `rate` in positions per second since the last time that somebody asked. `replay` is the
    unfinished replay, or else the last one.
    """

    name: str
    version: int
    status: str
    active: bool
    position: int
    lag_events: int
    lag_seconds: float
    rate: float | None = None
    parked: int
    error: str | None = None
    error_position: int | None = None
    updated_at: Time
    copies: list[CopyStatus]
    replay: ReplayStatus | None = None


async def statuses(
    conn: AsyncConnection[Any],
    projections: Sequence[Projection],
    rates: Rates,
) -> dict[str, ProjectionStatus]:
    """Every projection that is installed, by name; `projections` are those of this program."""
    models = {projection.name: projection for projection in projections}
    found = await overview(conn)
    latest = {replay.name: replay for replay in reversed(await replays_async(conn))}
    copies: dict[str, list[Copy]] = {}
    for progress in found:
        copies.setdefault(progress.copy.name, []).append(progress.copy)
    return {
        progress.copy.name: _present(
            progress,
            models.get(progress.copy.name),
            copies[progress.copy.name],
            latest.get(progress.copy.name),
            rates,
        )
        for progress in found
        if progress.copy.schema == progress.copy.name
    }


def _present(
    progress: CopyProgress,
    model: Projection | None,
    copies: Sequence[Copy],
    replay: Replay | None,
    rates: Rates,
) -> ProjectionStatus:
    copy = progress.copy
    outdated = model is not None and model.version != copy.version
    return ProjectionStatus(
        name=copy.name,
        version=copy.version,
        status="outdated" if outdated else copy.status,
        active=progress.active,
        position=copy.position,
        lag_events=progress.lag_events,
        lag_seconds=progress.lag_seconds,
        rate=rates.of(copy),
        parked=copy.parked,
        error=why_outdated(model, copy.version) if model and outdated else copy.error,
        error_position=copy.error_position,
        updated_at=copy.updated_at,
        copies=[_present_copy(each) for each in copies],
        replay=present_replay(replay, copy.head) if replay else None,
    )


def _present_copy(copy: Copy) -> CopyStatus:
    suffix = re.sub(r"[0-9]+$", "", copy.schema.removeprefix(copy.name))
    return CopyStatus(
        schema_name=copy.schema,
        kind=KINDS.get(suffix, "superseded"),
        version=copy.version,
        status=copy.status,
        position=copy.position,
        parked=copy.parked,
    )


def present_replay(replay: Replay, head: int) -> ReplayStatus:
    """A replay as both faces tell it; `head` is the end of the log."""
    reached = replay.position if replay.finished else head
    target = reached if replay.target is None else replay.target
    rate = None if replay.rests else replay.rate
    return ReplayStatus(
        id=replay.id,
        operation_id=replay.operation_id,
        purpose=str(replay.purpose),
        state=str(replay.state),
        paused=replay.paused,
        schema_name=replay.schema,
        version=replay.version,
        position=replay.position,
        target=target,
        events=replay.events_applied,
        rate=replay.rate,
        eta_seconds=max(0, target - replay.position) / rate if rate else None,
        workers=replay.workers,
        requested_by=replay.requested_by,
        started_at=replay.started_at,
        updated_at=replay.updated_at,
        finished_at=replay.finished_at,
        difference=replay.result,
        error=replay.error,
    )

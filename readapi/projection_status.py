"""The status of a projection, its copies and its replay: the same over HTTP and in the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal
from uuid import UUID

from psycopg import AsyncConnection
from pydantic import Field

from engine.checkpoints import CheckpointStatus
from engine.overview import Copy, Rates, lag_seconds, overview
from engine.projection import Projection
from engine.projection_subscription import why_outdated
from engine.replay.records import Purpose, Replay, ReplayState, newest_of_all
from infra.http.shapes import Time, UserId, Wire

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
    status: CheckpointStatus
    position: int
    parked: int


class ReplayStatus(Wire):
    """A replay: `target` is the position that is to be reached, which moves while the log grows.

    `state` is building, catching-up, comparing, waiting (for a confirmation of `difference`),
    switched, kept, verified, cancelled or failed; `rate` is in positions per second.
    """

    id: int
    operation_id: UUID
    purpose: Purpose
    state: ReplayState
    paused: bool
    schema_name: Annotated[str, Field(alias="schema")]
    version: int
    position: int
    target: int
    events: int
    rate: float | None = None
    eta_seconds: float | None = None
    workers: int
    requested_by: UserId
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
    status: Literal["running", "paused", "stopped", "outdated"]
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
    conn: AsyncConnection[Any], models: Mapping[str, Projection], rates: Rates
) -> dict[str, ProjectionStatus]:
    """Return every installed projection by name; `models` are those of this program by name."""
    copies, replays = await overview(conn), await newest_of_all(conn)
    found = {}
    for copy in copies:
        if copy.schema != copy.name:
            continue
        model, replay = models.get(copy.name), replays.get(copy.name)
        outdated = model is not None and model.version != copy.version
        status: dict[str, Any] = {
            **asdict(copy),
            "active": copy.active,
            "lag_events": copy.lag_events,
            "lag_seconds": await lag_seconds(conn, copy),
            "rate": rates.of(copy),
            "copies": [_present_copy(each) for each in copies if each.name == copy.name],
            "replay": present_replay(replay, copy.head) if replay else None,
        }
        if model is not None and outdated:
            status |= {"status": "outdated", "error": why_outdated(model, copy.version)}
        found[copy.name] = ProjectionStatus.model_validate(status)
    return found


def _present_copy(copy: Copy) -> CopyStatus:
    suffix = re.sub(r"[0-9]+$", "", copy.schema.removeprefix(copy.name))
    kind = KINDS.get(suffix, "superseded")
    return CopyStatus.model_validate({**asdict(copy), "kind": kind})


def present_replay(replay: Replay, head: int) -> ReplayStatus:
    """Return a replay as HTTP and the terminal show it; `head` is the end of the log."""
    reached = replay.position if replay.finished else head
    target = reached if replay.target is None else replay.target
    rate = None if replay.rests else replay.rate
    return ReplayStatus.model_validate(
        {
            **asdict(replay),
            "target": target,
            "events": replay.events_applied,
            "eta_seconds": max(0, target - replay.position) / rate if rate else None,
            "difference": replay.result,
        }
    )

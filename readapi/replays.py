"""What a replay would cost, and what it has found before it switches: the rows that differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.comparison import rows_by_key
from engine.inspection.index import Audit
from engine.projection import Projection, RangeProjection
from engine.replay.records import Replay, ReplayState, last_done, newest
from infra.http.auth import Admin
from infra.http.problems import Problem, problems
from infra.http.responses import NOT_MODIFIED, conditional_wire
from infra.http.shapes import Wire
from infra.security_log import SecurityEvent, record
from readapi.operations import ask, known
from readapi.pages import IfNoneMatch, Paged, decode_cursor, encode_cursor
from readapi.queries import Fresh, Read, topics_wanted

KIND = "differences"
# While both copies are there, and stand still enough to be looked at.
COMPARED = frozenset({ReplayState.WAITING, ReplayState.CATCHING_UP, ReplayState.COMPARING})

COPY_BYTES = b"""
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind IN ('r', 'p')
"""
POSITION = b"""
SELECT position FROM backlot_checkpoints WHERE kind = 'projection' AND subscription = %s
"""


class ReplayEstimate(Wire):
    """What a replay up to now takes: events to apply, of so many positions that are read.

    `expectedSeconds` goes by the last replay of the projection that came to its end, at `rate`
    positions a second, pauses included; both are left out where there was none. `diskBytes` is
    the size of the live copy: a second one is about as large.
    """

    projection: str
    events: int
    positions: int
    rate: float | None = None
    expected_seconds: float | None = None
    disk_bytes: int


class RowDifference(Wire):
    """A row that differs, by its primary key: missing in the live copy, only there, or different.

    `columns` are those that differ. `live` and `rebuilt` are the row in both copies, as long as
    both are there.
    """

    table: str
    key: dict[str, str | None]
    kind: Literal["missing", "extra", "different"]
    columns: list[str] | None = None
    live: dict[str, Any] | None = None
    rebuilt: dict[str, Any] | None = None


class TableComparison(Wire):
    """How many rows of a table both copies have, and how many differ in which way."""

    table: str
    live_rows: int | None = None
    rebuilt_rows: int | None = None
    missing: int
    extra: int
    different: int
    structure: list[str]


class ReplayDifferences(Wire):
    """What the newest replay of a projection found when it was compared; `items` are the first 100.

    `total` rows differ in all.
    """

    replay_id: int
    operation_id: UUID
    state: ReplayState
    position: int
    differs: bool
    total: int
    tables: list[TableComparison]
    items: list[RowDifference]
    next_cursor: str | None = None


Name = Annotated[str, Path(max_length=63)]
router = APIRouter(prefix="/projections/{name}", tags=["projections"])


@router.get(
    "/estimate",
    response_model=ReplayEstimate,
    responses=problems(401, 403, 404, 422, 503) | NOT_MODIFIED,
    summary="What a replay would take",
)
async def estimate_replay(
    name: Name,
    request: Request,
    queries: Read,
    caller: Admin,
    fresh: Fresh,
    if_none_match: IfNoneMatch = None,
) -> Response:
    projection = known(queries.models.by_name(), name)
    await queries.confirm(fresh)
    found = await ask(queries, lambda conn: estimate(conn, projection, queries.audit))
    return await conditional_wire(request, found)


def estimate(conn: Connection[TupleRow], projection: Projection, audit: Audit) -> ReplayEstimate:
    """Return what a replay up to now would take."""
    ((size,),) = conn.execute(COPY_BYTES, (projection.schema,)).fetchall()
    ((position,),) = conn.execute(POSITION, (projection.schema,)).fetchall()
    topics = None if isinstance(projection, RangeProjection) else list(topics_wanted(projection))
    events = audit.count(conn, topics)
    before = last_done(conn, projection.name)
    rate = None
    if before is not None and before.seconds > 0 and before.position > 0:
        rate = before.position / before.seconds
    return ReplayEstimate(
        projection=projection.name,
        events=events,
        positions=position,
        rate=rate,
        expected_seconds=position / rate if rate else None,
        disk_bytes=size,
    )


@router.get(
    "/differences",
    response_model=ReplayDifferences,
    responses=problems(401, 403, 404, 422, 503) | NOT_MODIFIED,
    summary="The rows in which the newest replay differs from the live copy",
)
async def list_differences(
    name: Name,
    request: Request,
    queries: Read,
    caller: Admin,
    fresh: Fresh,
    page: Paged,
    if_none_match: IfNoneMatch = None,
) -> Response:
    known(queries.models.by_name(), name)
    await queries.confirm(fresh)
    first = decode_cursor(KIND, page.cursor, 0)
    found = await ask(queries, lambda conn: _compared(conn, name, first, page.limit))
    if found is None:
        raise Problem(404, "not-found", "No replay of this projection was compared yet.")
    replay, result, rows = found.replay, found.replay.result or {}, found.rows
    if rows:
        told = {"path": "/projections/{name}/differences", "actor": ""}
        record(SecurityEvent.PERSONAL_DATA_READ, caller.person, **told)
    more = first + page.limit < len(result["keys"])
    body = ReplayDifferences(
        replay_id=replay.id,
        operation_id=replay.operation_id,
        state=replay.state,
        position=replay.position,
        differs=result["differs"],
        total=result["total"],
        tables=[_table(each) for each in result["tables"]],
        items=rows,
        next_cursor=encode_cursor(KIND, first + page.limit) if more else None,
    )
    return await conditional_wire(request, body)


class ComparedReplay(NamedTuple):
    """A replay that was compared, and a part of the rows that differ."""

    replay: Replay
    rows: Sequence[RowDifference]


def _compared(
    conn: Connection[TupleRow], name: str, first: int, limit: int
) -> ComparedReplay | None:
    replay = newest(conn, name)
    if replay is None or replay.result is None:
        return None
    keys = replay.result["keys"][first : first + limit]
    named = [(each["table"], each["key"]) for each in keys]
    nothing: list[dict[str, Any] | None] = [None] * len(keys)
    there = replay.state in COMPARED
    live = rows_by_key(conn, name, named) if there else nothing
    rebuilt = rows_by_key(conn, replay.schema, named) if there else nothing
    rows = [
        RowDifference.model_validate(
            {**each, "live": ours, "rebuilt": theirs, "columns": _columns(each, ours, theirs)}
        )
        for each, ours, theirs in zip(keys, live, rebuilt, strict=True)
    ]
    return ComparedReplay(replay, rows)


def _columns(
    key: dict[str, Any], ours: dict[str, Any] | None, theirs: dict[str, Any] | None
) -> list[str] | None:
    """Return the columns that differ: now, where both rows are there, else as it was compared."""
    if ours is None or theirs is None:
        return key.get("columns")
    return sorted(name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name])


def _table(told: dict[str, Any]) -> TableComparison:
    live, rebuilt = told["live"], told["other"]
    return TableComparison(
        table=told["table"],
        live_rows=None if live is None else live["rows"],
        rebuilt_rows=None if rebuilt is None else rebuilt["rows"],
        missing=told["missing"],
        extra=told["extra"],
        different=told["different"],
        structure=told["structure"],
    )

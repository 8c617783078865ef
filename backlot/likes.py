"""`backlot likes`: what an operator does about like counters."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backlot.arguments import group
from backlot.database import database_url
from backlot.output import Json, show
from infra.errors import ExitCode, OperatorError
from infra.settings import Settings, load_settings

if TYPE_CHECKING:
    from projections.like_counters import Counters, Drift, Reconciliation

app = group("The like counters in Redis.")


class NotReconciled(OperatorError):
    """The counters could not be compared."""


@app.command()
def reconcile(
    repair: Annotated[
        bool, typer.Option("--repair/--dry-run", help="Mend what differs, or only tell.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Compare all like counters with the read model. Exit code 1: some differed."""
    result = _reconcile(load_settings(), repair=repair)
    lines = [f"{result.compared} counters compared, {len(result.drifted)} differed"]
    lines += [_line(drift, repair=repair) for drift in result.drifted]
    told = {
        "compared": result.compared,
        "repaired": repair,
        "drifted": [_as_dict(drift) for drift in result.drifted],
    }
    show("\n".join(lines), told, as_json)
    raise typer.Exit(ExitCode.NOT_WELL if result.drifted else ExitCode.DONE)


def _reconcile(settings: Settings, *, repair: bool) -> Reconciliation:
    import psycopg
    from eventsourcing.persistence import PersistenceError
    from redis import RedisError

    from projections.like_counters import CountersBehind
    from workers.likes import open_counters

    with ExitStack() as stack:
        counters = open_counters(settings, stack)
        if counters is None:
            raise NotReconciled(
                "REDIS_URL: not set, so there are no like counters: counts come from the database"
            )
        try:
            result = _compare(database_url(settings), counters, repair=repair)
        except (psycopg.Error, RedisError, CountersBehind, PersistenceError) as error:
            raise NotReconciled(f"can't compare: {' '.join(str(error).split())}") from error
    if result is None:
        raise NotReconciled("another process compares the counters right now: try again")
    return result


def _compare(url: str, counters: Counters, *, repair: bool) -> Reconciliation | None:
    from backlot.database import recorded
    from domain.operation import OperationOutcome
    from projections.likes import Likes
    from workers.likes import reconcile_once

    with recorded(url, "reconcile", "likes", {"repair": repair}) as running:
        result = reconcile_once(url, Likes(), counters, repair=repair)
        if result is None:
            running.outcome = OperationOutcome.REFUSED
        else:
            running.result = {"compared": result.compared, "drifted": len(result.drifted)}
    return result


def _line(drift: Drift, *, repair: bool) -> str:
    done = "mended" if repair else "left as it is"
    return f"{drift.video_id}: counter {drift.counter.likes}, likes {drift.truth.likes} ({done})"


def _as_dict(drift: Drift) -> dict[str, Any]:
    return {
        "videoId": str(drift.video_id),
        "counter": drift.counter.likes,
        "counterPosition": drift.counter.position,
        "likes": drift.truth.likes,
        "position": drift.truth.position,
    }

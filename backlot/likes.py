"""`backlot likes`: what an operator does about like counters."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from backlot.arguments import group
from backlot.database import database_url, recorded
from backlot.output import Json, show
from domain.operation import OperationOutcome
from infra.errors import ExitCode, OperatorError
from infra.settings import Settings, load_settings

if TYPE_CHECKING:
    from projections.like_counters import Reconciliation


app = group("The like counters in Redis.")


class NotReconciliation(OperatorError):
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
    done = "mended" if repair else "left as it is"
    lines = [f"{result.compared} counters compared, {len(result.drifted)} differed"]
    lines += [
        f"{drift.video_id}: counter {drift.counter.likes}, likes {drift.truth.likes} ({done})"
        for drift in result.drifted
    ]
    drifted = [
        {
            "videoId": str(drift.video_id),
            "counter": drift.counter.likes,
            "counterPosition": drift.counter.position,
            "likes": drift.truth.likes,
            "position": drift.truth.position,
        }
        for drift in result.drifted
    ]
    told = {"compared": result.compared, "repaired": repair, "drifted": drifted}
    show("\n".join(lines), told, as_json)
    raise typer.Exit(ExitCode.NOT_WELL if drifted else ExitCode.DONE)


def _reconcile(settings: Settings, *, repair: bool) -> Reconciliation:
    import psycopg
    from eventsourcing.persistence import PersistenceError
    from redis import RedisError

    from projections.like_counters import CountersBehind
    from projections.likes import Likes
    from workers.likes import open_counters, reconcile_once

    with ExitStack() as stack:
        counters = open_counters(settings, stack)
        if counters is None:
            raise NotReconciliation(
                "REDIS_URL: not set, so there are no like counters: counts come from the database"
            )
        try:
            url = database_url(settings)
            with recorded(url, "reconcile", "likes", {"repair": repair}) as running:
                result = reconcile_once(url, Likes(), counters, repair=repair)
                if result is None:
                    running.outcome = OperationOutcome.REFUSED
                else:
                    differed = len(result.drifted)
                    running.result = {"compared": result.compared, "drifted": differed}
        except (psycopg.Error, RedisError, CountersBehind, PersistenceError) as error:
            raise NotReconciliation(f"can't compare: {' '.join(str(error).split())}") from error
    if result is None:
        raise NotReconciliation("another process compares the counters right now: try again")
    return result

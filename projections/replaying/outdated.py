"""Finds the read models that an older version of the code has made, and has them built again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from uuid import UUID, uuid4

import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

from engine import checkpoints
from projections.projection import Projection
from projections.replaying.asking import begin, cancel
from projections.replaying.rows import NoReplay, Replay, ReplayOptions, ReplayUnderWay, unfinished

log = structlog.get_logger(__name__)


def outdated(conn: Connection[TupleRow], models: Mapping[str, Projection]) -> list[Projection]:
    """Those whose live copy was made by an older version of the code than this one.

    One that a newer version has made is not among them: a release that was not stopped yet must
    not take away what its successor has built. Going back is an operator's decision.
    """
    copies = [(model, checkpoints.look(conn, model.schema)) for model in models.values()]
    return [model for model, copy in copies if copy and copy.version < model.version]


def begin_for_outdated(
    conn: Connection[TupleRow],
    models: Mapping[str, Projection],
    *,
    requested_by: str,
    new_id: Callable[[], UUID] = uuid4,
) -> list[Replay]:
    """Begin a replay for each that is outdated, which switches without a question.

    An unfinished one of an older version is given up for it. Those that another process begins at
    the same moment are left to that one.
    """
    begun = []
    for projection in outdated(conn, models):
        try:
            _give_up_older(conn, projection)
            begun.append(
                begin(
                    conn,
                    projection,
                    ReplayOptions(confirmed=True),
                    requested_by=requested_by,
                    operation_id=new_id(),
                )
            )
        except (ReplayUnderWay, NoReplay) as reason:
            log.info("replay_not_begun", projection=projection.name, reason=str(reason))
    return begun


def _give_up_older(conn: Connection[TupleRow], projection: Projection) -> None:
    replay = unfinished(conn, projection.name)
    if replay is not None and replay.version < projection.version:
        log.warning("replay_given_up", projection=projection.name, version=replay.version)
        cancel(conn, projection.name)

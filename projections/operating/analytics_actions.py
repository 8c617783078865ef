"""Operators' actions on the analytics: compared with the event log, and mended in place.

They are no projection: there are no copies to switch, since views have no other source than the
rows that are there.
"""

from __future__ import annotations

from contextlib import closing

from psycopg import Connection
from psycopg.rows import TupleRow

from domain.operation import Members, Operation, OperationOutcome
from engine.connections import connect
from infra.errors import OperatorError
from projections.analytics.rebuilding import NAME, Found, Rebuild, Stopped
from projections.operating.acting import Ended, Tools
from projections.proving.compare import Difference

ACTIONS = frozenset({"verify", "replay"})
NAMED_KEYS = 20


def rebuild_analytics(
    conn: Connection[TupleRow], tools: Tools, operation: Operation
) -> Ended | None:
    """Verify or replay the analytics; None where this process is to end before it is over.

    A replay that differs and was not agreed to is cancelled, and changes nothing.
    """
    if tools.analytics is None or operation.action not in ACTIONS:
        reason = f"The analytics can be verified and replayed; there is no {operation.action}."
        return Ended(OperationOutcome.REFUSED, {"reason": reason})
    if "to" in operation.parameters:
        reason = "The analytics are mended where they are: there is no look at their past."
        return Ended(OperationOutcome.REFUSED, {"reason": reason})
    try:
        with closing(connect(tools.analytics.url, "analytics rebuild")) as own:
            rebuild = Rebuild(
                conn,
                own,
                tools.analytics,
                report=tools.report,
                stopping=tools.stopping,
            )
            return _carry_out(rebuild, tools, operation)
    except Stopped:
        return None
    except OperatorError as error:
        return Ended(OperationOutcome.REFUSED, {"reason": str(error)})


def _carry_out(rebuild: Rebuild, tools: Tools, operation: Operation) -> Ended:
    found = rebuild.compare()
    tools.compared(found.difference)
    result = _as_result(found)
    if operation.action == "verify" or not found.difference.differs:
        return Ended(OperationOutcome.DONE, {"state": "verified", **result})
    if operation.parameters.get("yes") is not True and not tools.agrees(found.difference):
        reason = "What is stored differs, and nothing was changed; `yes` mends it."
        return Ended(OperationOutcome.CANCELLED, {"state": "cancelled", "reason": reason, **result})
    left = rebuild.mend(found)
    if left:
        error = f"{left} rows differ still, or again; verify tells which."
        return Ended(OperationOutcome.FAILED, {"state": "failed", "error": error, **result})
    return Ended(OperationOutcome.DONE, {"state": "mended", **result})


def _as_result(found: Found) -> Members:
    return {
        "name": NAME,
        "position": found.position,
        "events": found.events,
        "difference": _short(found.difference),
    }


def _short(difference: Difference) -> Members:
    """As it is kept in the audit: the first keys only."""
    told = difference.as_dict()
    return {**told, "keys": told["keys"][:NAMED_KEYS]}

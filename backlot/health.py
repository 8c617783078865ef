"""What operators and load balancers ask: liveness, readiness with each part's state, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Response

from backlot.part_status import NOT_MADE, look
from engine.replay.records import Replay
from infra.cache import SingleFlight
from infra.http.app import wire
from infra.http.shapes import Wire
from infra.metrics import CONTENT_TYPE, render
from infra.postgres.connection import Limits, explained, open_connection
from workers.operations.replays import under_way
from workers.parts import Parts

CHECK_SECONDS = 2.0
# Threads that look at the database end with the check that they are for.
LIMITS = Limits(connect=2, statement=1.0)
NOT_READY = {"Retry-After": "1"}
DIFFERS = "its copy differs from the live one: it waits for `confirm` or `cancel`"


class Readiness(Wire):
    """Whether every part answers, and what each says."""

    ready: bool
    parts: dict[str, Any]


def operations(parts: Parts) -> APIRouter:
    """Return the routes for operators and load balancers."""
    router = APIRouter(tags=["operations"])
    # However many ask, a part that does not answer is asked once at a time.
    checks: SingleFlight[Readiness] = SingleFlight()

    @router.get("/healthz", summary="The process lives")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get(
        "/readyz",
        response_model=Readiness,
        responses={503: {"model": Readiness, "description": "A part does not answer"}},
        summary="Every part answers",
    )
    async def readyz() -> Response:
        readiness = (await checks.join("parts", lambda: check(parts))).result
        return wire(readiness) if readiness.ready else wire(readiness, 503, NOT_READY)

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def prometheus() -> Response:
        return Response(render(), media_type=CONTENT_TYPE)

    return router


async def check(parts: Parts) -> Readiness:
    """Ask every part, all at once, whether it is in order; each has 2 s to answer.

    Not ready is who can't do its work; a projection that stopped is told, but the rest goes on.
    """
    database, objects, redis, locks, analytics = await asyncio.gather(
        _state(lambda: asyncio.to_thread(_replays, parts.database_url), "replays"),
        _state(parts.objects.check),
        _state(parts.redis.ping),
        _state(parts.locks.check),
        _state(lambda: asyncio.to_thread(_analytics, parts.analytics_url), "detail"),
    )
    # Of the replays under way those are told that ask, or can't go on.
    replays = database.pop("replays", [])
    states = {
        "database": database,
        "objects": objects,
        # Redis may vanish: what can't do without it says so, and the rest goes on.
        "redis": redis | {"serves": True},
        "locks": locks | {"serves": True},
        "analytics": analytics | {"serves": True},
    }
    for runner in parts.host.status() if parts.host else ():
        states[f"projection {runner.name}"] = {
            "ok": runner.in_order,
            "serves": runner.serves,
            "state": str(runner.state),
            "position": runner.position,
            "lagEvents": runner.lag_events,
            "detail": runner.detail,
        }
    states |= {f"replay {replay.name}": _told(replay) for replay in replays if parts.host}
    ready = all(state.pop("serves", state["ok"]) for state in states.values())
    return Readiness(ready=ready, parts=states)


def _replays(database_url: str) -> list[Replay]:
    with open_connection(database_url, "readiness", LIMITS) as conn:
        return under_way(conn)


def _analytics(url: str) -> str:
    """Return what the analytics stand on; while their database is away, counting waits."""
    return str(look(url, LIMITS) or NOT_MADE)


def _told(replay: Replay) -> dict[str, Any]:
    asks = replay.rests and not replay.paused
    return {
        "ok": replay.error is None and not asks,
        "serves": True,
        "state": str(replay.state),
        "position": replay.position,
        "paused": replay.paused,
        "detail": DIFFERS if asks else replay.error,
    }


async def _state(ask: Callable[[], Awaitable[object]], name: str | None = None) -> dict[str, Any]:
    """Return whether a part answers, and under `name`, if there is one, what it answers."""
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            answer = await ask()
    except TimeoutError:
        return {"ok": False, "detail": f"it hangs: no answer within {CHECK_SECONDS:g} s"}
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return {"ok": False, "detail": f"{type(error).__name__}: {explained(error)}"}
    return {"ok": True} if name is None else {"ok": True, name: answer}

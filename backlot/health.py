"""What operators and load balancers ask: liveness, readiness with each part's state, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from eventsourcing.persistence import PersistenceError
from fastapi import APIRouter, Response

from backlot.doctor_analytics import NOT_MADE, look
from backlot.wiring import Parts
from infra import metrics
from infra.contract import Readiness
from infra.http import wire
from projections.operating.replay_actions import under_way
from projections.replaying.rows import Replay

CHECK_SECONDS = 2.0
DIFFERS = "its copy differs from the live one: it waits for `confirm` or `cancel`"


def operations(parts: Parts) -> APIRouter:
    """The routes of operations."""
    router = APIRouter(tags=["operations"])

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
        readiness = await check(parts)
        return wire(readiness, 200 if readiness.ready else 503)

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def prometheus() -> Response:
        return Response(metrics.render(), media_type=metrics.CONTENT_TYPE)

    return router


async def check(parts: Parts) -> Readiness:
    """Ask every part whether it is in order; each has 2 s to answer.

    Not ready is who can't do its work; a projection that stopped is told, but the rest goes on.
    """
    states = {
        "database": await _state(lambda: asyncio.to_thread(parts.recorder.max_notification_id)),
        "objects": await _state(parts.objects.check),
        # Redis may vanish: what can't do without it says so, and the rest goes on.
        "redis": await _state(parts.redis.ping) | {"serves": True},
        "locks": await _state(parts.locks.check) | {"serves": True},
        "analytics": await _analytics(parts) | {"serves": True},
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
    states |= await _replays(parts) if parts.host else {}
    ready = all(state.pop("serves", state["ok"]) for state in states.values())
    return Readiness(ready=ready, parts=states)


async def _analytics(parts: Parts) -> dict[str, Any]:
    """What they stand on; while their database is away, what happens waits to be counted."""
    found: list[str] = []

    async def ask() -> None:
        found.append(str(await asyncio.to_thread(look, parts.analytics_url) or NOT_MADE))

    answer = await _state(ask)
    return answer | {"detail": found[0]} if found else answer


async def _replays(parts: Parts) -> dict[str, dict[str, Any]]:
    """Replays under way; one that asks, or stands before an event that it can't apply, is told."""

    def look() -> list[Replay]:
        with parts.recorder.connection() as conn:
            return under_way(conn)

    try:
        async with asyncio.timeout(CHECK_SECONDS):
            found = await asyncio.to_thread(look)
    except (PersistenceError, TimeoutError):
        # The database has a line of its own.
        return {}
    return {f"replay {replay.name}": _told(replay) for replay in found}


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


async def _state(ask: Callable[[], Awaitable[object]]) -> dict[str, Any]:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await ask()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return {"ok": False, "detail": f"{type(error).__name__}: {error}"}
    return {"ok": True}

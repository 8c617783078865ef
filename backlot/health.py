"""What operators and load balancers ask: liveness, readiness with each part's state, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Response

from backlot.wiring import Parts
from infra import metrics
from infra.contract import Readiness
from infra.http import wire

CHECK_SECONDS = 2.0


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
    ready = all(state.pop("serves", state["ok"]) for state in states.values())
    return Readiness(ready=ready, parts=states)


async def _state(ask: Callable[[], Awaitable[object]]) -> dict[str, Any]:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await ask()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return {"ok": False, "detail": f"{type(error).__name__}: {error}"}
    return {"ok": True}

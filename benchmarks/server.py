"""`backlot up` itself, with three more routes.

One does nothing, one only asks Redis, one switches the rate limits.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import Literal
from unittest.mock import patch
from uuid import UUID

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel

from backlot.app import make_app
from backlot.up import run_up
from infra.http.shapes import LikeState, Wire
from infra.metrics import value
from infra.settings import load_settings
from workers.parts import Parts

LIKE = "/videos/{video_id}/like"

router = APIRouter()


class Nothing(BaseModel):
    """As large as the answer to a like."""

    done: bool
    count: int


@router.post("/noop")
async def noop() -> Nothing:
    return Nothing(done=True, count=1)


class Spent(Wire):
    """What this process has spent and done so far."""

    cpu_seconds: float
    likes: float


@router.post("/limits/{switch}")
async def limits(switch: Literal["on", "off"], request: Request) -> Spent:
    """Have nothing limited from now on, as `RATE_LIMITS=off` has it, or what was before."""
    app = request.app
    if not hasattr(app.state, "limited"):
        app.state.limited = app.rate_limits, app.state.commands
    rates, services = app.state.limited
    on = switch == "on"
    app.rate_limits = rates if on else None
    app.state.commands = services if on else replace(services, quotas=None)
    return Spent(cpu_seconds=time.process_time(), likes=value("backlot_events_appended_total"))


def plain(parts: Parts) -> APIRouter:
    """The least that a count from Redis can cost here: one GET of a plain key."""
    found = APIRouter()

    @found.get("/plain/{video_id}")
    async def get_plain(video_id: UUID) -> LikeState:
        value = await parts.redis.get(f"plain:{video_id}")
        return LikeState(likes_count=int(value or 0))

    return found


def with_noop(parts: Parts) -> FastAPI:
    """The real application, with the no-op beside the like: routes are searched one by one."""
    app = make_app(parts)
    routes = app.router.routes
    place = next((i for i, route in enumerate(routes) if _is_like(route)), len(routes))
    routes[place:place] = [*router.routes, *plain(parts).routes]
    return app


def _is_like(route: object) -> bool:
    return isinstance(route, APIRoute) and route.path == LIKE and "POST" in (route.methods or ())


if __name__ == "__main__":
    with patch("backlot.up.make_app", with_noop):
        sys.exit(run_up(load_settings()))

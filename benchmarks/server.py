"""`backlot up` itself, with more routes.

Two do nothing, one only asks Redis, two switch the rate limits and encryption.
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
from engine.log import MAPPER, EventMapper
from infra.http.shapes import LikeState, Wire
from infra.metrics import value
from infra.settings import load_settings
from workers.parts import Parts

PLAIN = EventMapper()
LIKE = "/videos/{video_id}/like"

router = APIRouter()


class Nothing(BaseModel):
    """As large as the answer to a like."""

    done: bool
    count: int


@router.post("/noop")
async def noop() -> Nothing:
    return Nothing(done=True, count=1)


@router.get("/noop")
async def noop_read() -> Nothing:
    """As `/healthz`: by the framework, as every GET of the contract without a shortcut."""
    return Nothing(done=True, count=1)


class Spent(Wire):
    """What this process has spent and done so far."""

    cpu_seconds: float
    likes: float
    comments: float


def spent() -> Spent:
    commands = {"command": "PostComment", "outcome": "accepted"}
    return Spent(
        cpu_seconds=time.process_time(),
        likes=value("backlot_events_appended_total"),
        comments=value("backlot_commands_total", **commands),
    )


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
    return spent()


@router.post("/encryption/{switch}")
async def encryption(switch: Literal["on", "off"]) -> Spent:
    """Have texts recorded as they are from now on, or encrypted; both are read all the time."""
    if switch == "off":
        vars(MAPPER)["to_stored_event"] = PLAIN.to_stored_event
    else:
        vars(MAPPER).pop("to_stored_event", None)
    return spent()


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

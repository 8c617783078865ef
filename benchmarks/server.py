"""`backlot up` itself, with one more route: a POST that does nothing, through the same edge."""

from __future__ import annotations

import sys
from unittest.mock import patch

from fastapi import APIRouter, FastAPI
from pydantic import BaseModel

from backlot.up import run_up
from backlot.wiring import Parts, make_app
from infra.settings import load_settings

router = APIRouter()


class Nothing(BaseModel):
    """As large as the answer to a like."""

    done: bool
    count: int


@router.post("/noop")
async def noop() -> Nothing:
    return Nothing(done=True, count=1)


def with_noop(parts: Parts) -> FastAPI:
    """The real application; the additional route comes last, so that no other gets slower."""
    app = make_app(parts)
    app.router.routes.extend(router.routes)
    return app


if __name__ == "__main__":
    with patch("backlot.up.make_app", with_noop):
        sys.exit(run_up(load_settings()))

"""What the fork server has imported and made before it forks a program: see `tests.fork_server`."""

from __future__ import annotations

import gc
import importlib
from functools import cache

import httpx
import typer.main
from fakeredis import FakeServer
from httpx._transports import default as transports

from backlot import processes
from backlot.cli import app
from tests.forked_children import ChildrenOfForked, fork_serving_process
from workers.operations import executor

# What a start of the server, the commands of operators and the features load when they need it.
MODULES = (
    "anyio._backends._asyncio",
    "backlot.demo.run",
    "backlot.doctor",
    "backlot.projections.replay",
    "backlot.up",
    "backlot.upload.run",
    "boto3",
    "fakeredis.aioredis",
    "openai",
    "tests.integration.replay_support",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
)

for name in MODULES:
    importlib.import_module(name)
# The tree of commands never changes, nor what a client of HTTP knows of certificates.
typer.main.get_command = cache(typer.main.get_command)
typer.main.get_command(app)
vars(transports)["create_ssl_context"] = cache(httpx.create_ssl_context)
httpx.Client().close()
# Its first one reads which commands there are.
FakeServer()
executor.Children = ChildrenOfForked  # type: ignore[misc]
processes.start_process = fork_serving_process  # type: ignore[assignment]
# What is here stays: a collection in a child would copy all of it.
gc.collect()
gc.freeze()

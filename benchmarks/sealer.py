"""Seals the log at the URL that it is given, as a process with the role workers does."""

from __future__ import annotations

import asyncio
import signal
import sys

from engine.schedule import run_job
from engine.seals.sealer import Sealer
from infra.logging import configure_logging
from infra.settings import load_settings
from workers.maintenance import sealing_job

READY = "ready"


async def serve(sealer: Sealer, block_seconds: float) -> None:
    """Until SIGTERM."""
    task = asyncio.ensure_future(run_job(sealing_job(sealer, block_seconds)))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    print(READY, flush=True)
    await asyncio.wait([task])


def make_sealer(url: str) -> Sealer:
    """A sealer with the default settings."""
    seals = load_settings({}).seals
    return Sealer(url, block_events=seals.block_events, block_seconds=seals.block_seconds)


if __name__ == "__main__":
    configure_logging(load_settings({"LOG_LEVEL": "error"}).logs)
    asyncio.run(serve(make_sealer(sys.argv[1]), load_settings({}).seals.block_seconds))

"""Seals the log at the URL that it is given, as a process with the role workers does."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from engine.schedule import run_job
from engine.seals.anchors import HeadFile
from engine.seals.sealer import Sealer
from infra.data_folder import seal_head_path
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


def make_sealer(url: str, folder: str) -> Sealer:
    """A sealer with the default settings, which keeps its head in the folder."""
    seals = load_settings({}).seals
    return Sealer(
        url,
        block_events=seals.block_events,
        block_seconds=seals.block_seconds,
        head=HeadFile(seal_head_path(Path(folder))),
    )


if __name__ == "__main__":
    configure_logging(load_settings({"LOG_LEVEL": "error"}).logs)
    with TemporaryDirectory() as own:
        asyncio.run(serve(make_sealer(sys.argv[1], own), load_settings({}).seals.block_seconds))

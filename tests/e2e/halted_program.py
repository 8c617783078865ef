"""The program, halted by a signal at a chosen step of finalizing: a crash there, or a long pause.

Run as `python -m tests.e2e.halted_program up`. A file `halt` in its working folder,
`<step> <signal>`, halts it once; `slow`, in seconds, is how long the store takes to join. What
the store is asked becomes a line in `asked`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from backlot.cli import main
from commands.uploads import CompleteUpload
from engine.command_bus import CommandBus
from infra.objects.disk import move_new_folder
from infra.objects.folder import FolderStore
from infra.objects.port import Part, PartRef, StoredObject
from infra.objects.s3 import S3Store
from infra.redlock import Lease, Redlock

STEPS = (
    "before the lock",
    "after the lock",
    "before the store",
    WITHIN_THE_STORE := "within the store",
    "after the store",
    "before the event",
    "after the event",
    "before the release",
    "after the release",
)
HALT, SLOW = Path("halt"), Path("slow")


def pass_by(step: str) -> None:
    """Stop or die here when this is the step that was chosen; once."""
    try:
        chosen, name = HALT.read_text().rsplit(" ", 1)
    except FileNotFoundError:
        return
    if chosen == step:
        HALT.unlink()
        os.kill(os.getpid(), signal.Signals[name])
        # Another thread may be the one that gets it; this one must not run on meanwhile.
        time.sleep(0.1)


hold = Redlock.hold


@asynccontextmanager
async def halting_hold(
    self: Redlock, key: str, ttl: float, *, wait: float = 0.0
) -> AsyncIterator[Lease]:
    if not key.startswith("upload:finalize:"):
        async with hold(self, key, ttl, wait=wait) as lease:
            yield lease
        return
    pass_by("before the lock")
    async with hold(self, key, ttl, wait=wait) as lease:
        pass_by("after the lock")
        yield lease
        pass_by("before the release")
    pass_by("after the release")


Complete = Callable[[Any, str, str, Sequence[PartRef]], Awaitable[StoredObject]]
ListParts = Callable[[Any, str, str], Awaitable[list[Part]]]


def halting(complete: Complete) -> Complete:
    """A store's `complete`, with a step before it and one after it."""

    async def halted(
        store: Any, key: str, store_upload_id: str, parts: Sequence[PartRef]
    ) -> StoredObject:
        tell("complete", key)
        pass_by("before the store")
        await asyncio.sleep(slowness())
        stored = await complete(store, key, store_upload_id, parts)
        pass_by("after the store")
        return stored

    return halted


def telling(list_parts: ListParts) -> ListParts:
    """A store's `list_parts` that is told of."""

    async def told(store: Any, key: str, store_upload_id: str) -> list[Part]:
        tell("list", key)
        return await list_parts(store, key, store_upload_id)

    return told


def tell(what: str, key: str) -> None:
    with Path("asked").open("a") as lines:
        lines.write(f"{what} {key}\n")


def slowness() -> float:
    return float(SLOW.read_text()) if SLOW.exists() else 0.0


def halting_move(source: Path, target: Path) -> None:
    """What the folder store does to a joined object before anybody can see it."""
    pass_by(WITHIN_THE_STORE)
    move_new_folder(source, target)


async def halted(command: Any, executed: Awaitable[Any]) -> Any:
    if not isinstance(command, CompleteUpload):
        return await executed
    pass_by("before the event")
    outcome = await executed
    pass_by("after the event")
    return outcome


class HaltingBus(CommandBus):
    async def execute(self, command: Any, **options: Any) -> Any:
        return await halted(command, super().execute(command, **options))

    async def execute_once(self, command: Any, key: Any, **options: Any) -> Any:
        return await halted(command, super().execute_once(command, key, **options))


if __name__ == "__main__":
    with (
        patch.object(Redlock, "hold", halting_hold),
        patch.object(FolderStore, "complete", halting(FolderStore.complete)),
        patch.object(FolderStore, "list_parts", telling(FolderStore.list_parts)),
        patch("infra.objects.folder.move_new_folder", halting_move),
        patch.object(S3Store, "complete", halting(S3Store.complete)),
        patch("backlot.app.CommandBus", HaltingBus),
    ):
        main()

"""The program, killed at a chosen step of forgetting somebody, which waits for nothing in between.

Run as `python -m tests.e2e.halted_erasure up`; a file `halt` in its working folder says where, as
for `tests.e2e.halted_program`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from unittest.mock import patch

from backlot.cli import main
from engine import erasures
from engine.erasures import ErasureStep
from tests.e2e.halted_program import pass_by
from workers.erasure import Eraser

WITHIN_VIDEOS = "between the event of a video and its object"
WITHIN_FINISH = "between the last event and the row"
BEFORE = {ErasureStep.VIDEOS: [WITHIN_VIDEOS], ErasureStep.FINISH: [WITHIN_FINISH]}
STEPS = [name for step in ErasureStep for name in [*BEFORE.get(step, []), f"after {step}"]]
"""Where it can be killed, in their order: one erasure comes by all of them."""

do, drop, finish = Eraser.do, Eraser._drop, erasures.finish


async def halting_do(self: Eraser, conn: Any, erasure: erasures.Erasure) -> Counter[str] | None:
    removed = await do(self, conn, erasure)
    if removed is not None or erasure.step is ErasureStep.FINISH:
        pass_by(f"after {erasure.step}")
    return removed


async def halting_drop(self: Eraser, key: str, store_upload_id: str) -> None:
    pass_by(WITHIN_VIDEOS)
    await drop(self, key, store_upload_id)


def halting_finish(conn: Any, pseudonym: str, counts: Mapping[str, int]) -> None:
    pass_by(WITHIN_FINISH)
    finish(conn, pseudonym, counts)


if __name__ == "__main__":
    with (
        patch.object(Eraser, "do", halting_do),
        patch.object(Eraser, "_drop", halting_drop),
        patch.object(erasures, "finish", halting_finish),
        patch("workers.erasure.SETTLING", timedelta(0)),
        patch("workers.erasure.INTERVAL_SECONDS", 0.1),
    ):
        main()

"""Programs that do one thing and end: bounded in time, and gone when the caller is."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from dataclasses import dataclass

from infra.cancellation import to_the_end


@dataclass(frozen=True, slots=True)
class ProgramExit:
    """How a program ended, and what it said."""

    code: int
    output: bytes
    complaint: str
    """The last line that it wrote to its standard error."""


async def run(*command: str) -> ProgramExit:
    """Run a program to its end; one that is cancelled is killed. Raises OSError, not found."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=PIPE
    )
    try:
        output, errors = await process.communicate()
    finally:
        await _end(process)
    lines = errors.decode(errors="replace").strip().splitlines()
    return ProgramExit(process.returncode or 0, output, lines[-1] if lines else "")


async def _end(process: Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await to_the_end(process.communicate())

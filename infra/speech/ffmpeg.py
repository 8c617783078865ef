"""What Whisper needs of a video: whether it has sound, and the sound as plain samples.

The video is a stranger's. Only formats that hold their media themselves are read: a playlist
could make ffmpeg fetch other files, or call other hosts.
"""

from __future__ import annotations

import asyncio
import shutil
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from infra.cancellation import to_the_end
from infra.speech.port import MediaUnreadable

PROGRAMS = ("ffmpeg", "ffprobe")
SAMPLE_RATE = 16_000
FORMATS = "mov,matroska,avi,flv,mpegts,mpeg,asf,ogg,wav,mp3,flac,aac"
STALLED_MICROSECONDS = 30_000_000
URLS = ("http://", "https://")


@dataclass(frozen=True, slots=True)
class ProgramExit:
    """How a program ended, and what it said."""

    code: int
    output: bytes
    complaint: str
    """The last line that it wrote to its standard error."""


async def run(*command: str) -> ProgramExit:
    """Run a program to its end; one that is cancelled is killed. Raise OSError, not found."""
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


@dataclass(frozen=True, slots=True)
class Media:
    """What a medium says of itself; None where it does not."""

    has_sound: bool
    duration_seconds: float | None
    size_bytes: int | None


class _Stream(BaseModel):
    codec_type: str = ""


class _Format(BaseModel):
    duration: float | None = None
    size: int | None = None


class _Probed(BaseModel):
    streams: list[_Stream]
    format: _Format


def missing() -> list[str]:
    """Return the programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


async def probe(source: str) -> Media:
    """Return what the medium is. Raise MediaUnreadable."""
    shown = "stream=codec_type:format=duration,size"
    ended = await run(
        "ffprobe", "-v", "error", "-show_entries", shown, "-of", "json", *_input(source)
    )
    _check(ended, source)
    try:
        probed = _Probed.model_validate_json(ended.output)
    except ValidationError as error:
        raise MediaUnreadable("ffprobe tells nothing of the medium.") from error
    has_sound = any(stream.codec_type == "audio" for stream in probed.streams)
    return Media(has_sound, probed.format.duration, probed.format.size)


async def decode(source: str, samples: Path, most_seconds: float) -> None:
    """Write the first sound track, up to `most_seconds` of it: 16 kHz, one channel, 16 bits.

    Raise MediaUnreadable.
    """
    ended = await run(
        *("ffmpeg", "-nostdin", "-v", "error", *_input(source)),
        *("-map", "0:a:0", "-t", f"{most_seconds:.3f}"),
        *("-f", "s16le", "-ac", "1", "-ar", str(SAMPLE_RATE), str(samples)),
    )
    _check(ended, source)


def _input(source: str) -> list[str]:
    if source.startswith(URLS):
        reach = ["-protocol_whitelist", "http,https,tcp,tls", "-rw_timeout"]
        return [*reach, str(STALLED_MICROSECONDS), "-format_whitelist", FORMATS, "-i", source]
    # Else a file's name could be taken for another protocol.
    file = f"file:{source}"
    return ["-protocol_whitelist", "file", "-format_whitelist", FORMATS, "-i", file]


def _check(ended: ProgramExit, source: str) -> None:
    """Raise MediaUnreadable for a failure; without the URL, which carries its own permission."""
    if ended.code != 0:
        reason = ended.complaint.replace(source, "the medium").replace("file:the", "the")
        raise MediaUnreadable(f"ffmpeg: {reason}", retryable=source.startswith(URLS))

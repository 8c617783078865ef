"""Speech in videos: ffmpeg takes the sound out of a video, a process with Whisper listens to it.

The video is a stranger's. Only formats that hold their media themselves are read: a playlist
could make ffmpeg fetch other files, or call other hosts.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from pydantic import BaseModel, ValidationError

from infra import whisper
from infra.cancellation import to_the_end
from infra.environment import bare_environment
from infra.errors import OperatorError
from infra.language.detector import iso_639_1
from infra.settings.adapters import SpeechSettings

PROGRAMS = ("ffmpeg", "ffprobe")
FORMATS = "mov,matroska,avi,flv,mpegts,mpeg,asf,ogg,wav,mp3,flac,aac"
STALLED_MICROSECONDS = 30_000_000
URLS = ("http://", "https://")


class SpeechError(Exception):
    """A medium whose speech can't be written down; the text names no URL and no folder."""

    def __init__(self, text: str, *, retryable: bool = False) -> None:
        """`retryable` says whether the same medium may succeed later."""
        super().__init__(text)
        self.retryable = retryable


class MediaUnreadable(SpeechError):
    """ffmpeg can't read it, or can't reach it: then it is retryable."""


class MediaTooLarge(SpeechError):
    """It has more bytes than the limit."""


class TranscriptionTimedOut(SpeechError):
    """It took longer than the limit."""


class TranscriptionFailed(SpeechError):
    """Whisper's process ended without a transcript."""


class SpeechUnavailable(OperatorError):
    """SPEECH_TRANSCRIPTION=on, and something for it is missing."""


@dataclass(frozen=True, slots=True)
class Segment:
    """What is said from `start` to `end`, in seconds from the beginning."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """What is said, and in which language (ISO 639-1).

    Where nothing is said, for want of a sound track too, `language` is None and `text` empty.
    `duration_seconds` is the medium's own, None where it does not tell.
    """

    language: str | None
    text: str
    segments: tuple[Segment, ...]
    duration_seconds: float | None


class Transcriber(Protocol):
    """Writes down speech; several calls may wait for one another."""

    @property
    def name(self) -> str:
        """Which model listens; recorded with each transcript."""

    async def transcribe(self, media: Path | str) -> Transcript:
        """Return the transcript of a file, or of what an http(s) URL gives. Raise SpeechError.

        Cancelling it ends the work.
        """


@dataclass(frozen=True, slots=True)
class TranscriptionLimits:
    """What is done for one medium at most."""

    media_bytes: int = 16 * 1024**3
    sound_seconds: float = 3_600.0
    """Of the beginning; what is said later is not written down. An hour needs 115 MB of disk."""
    work_seconds: float = 1_800.0


class WhisperTranscriber:
    """One medium at a time: listening takes all cores."""

    def __init__(self, model: str, limits: TranscriptionLimits | None = None) -> None:
        """Raise WhisperMissing without the extra; the model is loaded for each medium."""
        whisper.require("SPEECH_TRANSCRIPTION=on")
        self._model = model
        self._limits = limits or TranscriptionLimits()
        self._turn = asyncio.Lock()
        self.name = whisper.name_of(model)

    async def transcribe(self, media: Path | str) -> Transcript:
        """As the port has it."""
        async with self._turn:
            try:
                async with asyncio.timeout(self._limits.work_seconds):
                    return await self._transcribe(str(media))
            except TimeoutError:
                seconds = self._limits.work_seconds
                raise TranscriptionTimedOut(f"It took more than {seconds:g} seconds.") from None

    async def _transcribe(self, source: str) -> Transcript:
        media = await probe(source)
        if media.size_bytes is not None and media.size_bytes > self._limits.media_bytes:
            raise MediaTooLarge(f"It has more than {self._limits.media_bytes} bytes.")
        if not media.has_sound:
            return Transcript(None, "", (), media.duration_seconds)
        with TemporaryDirectory(prefix="backlot-speech-") as folder:
            samples = Path(folder) / "samples"
            await decode(source, samples, self._limits.sound_seconds)
            # A process of its own: its memory ends with it, and it can be stopped in the middle,
            # which a thread can't.
            command = (sys.executable, "-m", "infra.whisper", self._model, str(samples))
            ended = await run_program(*command)
        if ended.code != 0:
            raise TranscriptionFailed(f"Whisper failed: {ended.complaint}")
        return _transcript(_Heard.model_validate_json(ended.output), media.duration_seconds)


class _Heard(BaseModel):
    language: str
    segments: list[Segment]


def _transcript(heard: _Heard, duration_seconds: float | None) -> Transcript:
    parts = [Segment(part.start, part.end, part.text.strip()) for part in heard.segments]
    said = tuple(part for part in parts if part.text)
    text = " ".join(part.text for part in said)
    return Transcript(iso_639_1(heard.language) if text else None, text, said, duration_seconds)


def available(settings: SpeechSettings) -> bool:
    """Return whether speech is transcribed; raise SpeechUnavailable when it should and can't be."""
    if settings.transcription == "off":
        return False
    needed = [] if whisper.is_installed() else ["Whisper (`pip install 'backlot[whisper]'`)"]
    if programs := missing_programs():
        needed.append(f"{' and '.join(programs)} on the PATH")
    if needed and settings.transcription == "on":
        raise SpeechUnavailable(f"SPEECH_TRANSCRIPTION=on needs {' and '.join(needed)}.")
    return not needed


def make_transcriber(settings: SpeechSettings) -> Transcriber | None:
    """Return the transcriber, None where speech is not transcribed. Raise as `available` does."""
    return WhisperTranscriber(settings.whisper_model) if available(settings) else None


def missing_programs() -> list[str]:
    """Return the programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


@dataclass(frozen=True, slots=True)
class ProgramExit:
    """How a program ended, and what it said."""

    code: int
    output: bytes
    complaint: str
    """The last line that it wrote to its standard error."""


async def run_program(*command: str) -> ProgramExit:
    """Run a program to its end; one that is cancelled is killed. Raise OSError, not found.

    It reads what strangers send, so it gets none of the settings in its environment.
    """
    process = await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=bare_environment()
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await to_the_end(process.communicate())
    lines = errors.decode(errors="replace").strip().splitlines()
    return ProgramExit(process.returncode or 0, output, lines[-1] if lines else "")


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


async def probe(source: str) -> Media:
    """Return what the medium is. Raise MediaUnreadable."""
    shown = "stream=codec_type:format=duration,size"
    command = ("ffprobe", "-v", "error", "-show_entries", shown, "-of", "json")
    output = await _run_on(source, *command, *_input(source))
    try:
        probed = _Probed.model_validate_json(output)
    except ValidationError as error:
        raise MediaUnreadable("ffprobe tells nothing of the medium.") from error
    has_sound = any(stream.codec_type == "audio" for stream in probed.streams)
    return Media(has_sound, probed.format.duration, probed.format.size)


async def decode(source: str, samples: Path, most_seconds: float) -> None:
    """Write the first sound track, up to `most_seconds` of it: 16 kHz, one channel, 16 bits.

    Raise MediaUnreadable.
    """
    await _run_on(
        source,
        *("ffmpeg", "-nostdin", "-v", "error", *_input(source)),
        *("-map", "0:a:0", "-t", f"{most_seconds:.3f}"),
        *("-f", "s16le", "-ac", "1", "-ar", str(whisper.SAMPLE_RATE), str(samples)),
    )


def _input(source: str) -> list[str]:
    if source.startswith(URLS):
        reach = ["-protocol_whitelist", "http,https,tcp,tls", "-rw_timeout"]
        return [*reach, str(STALLED_MICROSECONDS), "-format_whitelist", FORMATS, "-i", source]
    # Else a file's name could be taken for another protocol.
    file = f"file:{source}"
    return ["-protocol_whitelist", "file", "-format_whitelist", FORMATS, "-i", file]


async def _run_on(source: str, *command: str) -> bytes:
    """Return the program's output. Raise MediaUnreadable without the URL: it is a permission."""
    ended = await run_program(*command)
    if ended.code != 0:
        reason = ended.complaint.replace(source, "the medium").replace("file:the", "the")
        raise MediaUnreadable(f"ffmpeg: {reason}", retryable=source.startswith(URLS))
    return ended.output

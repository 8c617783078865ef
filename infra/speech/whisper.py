"""Whisper as a transcriber: ffmpeg takes the sound out of a video, a process listens to it."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel

from infra import whisper
from infra.errors import OperatorError
from infra.language.detector import iso_639_1
from infra.settings.adapters import SpeechSettings
from infra.speech import ffmpeg
from infra.speech.ffmpeg import run
from infra.speech.port import (
    MediaTooLarge,
    Segment,
    Transcriber,
    Transcript,
    TranscriptionFailed,
    TranscriptionTimedOut,
)


@dataclass(frozen=True, slots=True)
class TranscriptionLimits:
    """What is done for one medium at most."""

    media_bytes: int = 16 * 1024**3
    sound_seconds: float = 3_600.0
    """Of the beginning; what is said later is not written down. An hour needs 115 MB of disk."""
    work_seconds: float = 1_800.0


class _Part(BaseModel):
    start: float
    end: float
    text: str


class _Heard(BaseModel):
    language: str
    segments: list[_Part]


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
        media = await ffmpeg.probe(source)
        if media.size_bytes is not None and media.size_bytes > self._limits.media_bytes:
            raise MediaTooLarge(f"It has more than {self._limits.media_bytes} bytes.")
        if not media.has_sound:
            return Transcript(None, "", (), media.duration_seconds)
        with TemporaryDirectory(prefix="backlot-speech-") as folder:
            samples = Path(folder) / "samples"
            await ffmpeg.decode(source, samples, self._limits.sound_seconds)
            heard = await self._listen(samples)
        return _transcript(heard, media.duration_seconds)

    async def _listen(self, samples: Path) -> _Heard:
        module = "infra.speech.recogniser"
        ended = await run(sys.executable, "-m", module, self._model, str(samples))
        if ended.code != 0:
            raise TranscriptionFailed(f"Whisper failed: {ended.complaint}")
        return _Heard.model_validate_json(ended.output)


def _transcript(heard: _Heard, duration_seconds: float | None) -> Transcript:
    parts = [Segment(part.start, part.end, part.text.strip()) for part in heard.segments]
    said = tuple(part for part in parts if part.text)
    text = " ".join(part.text for part in said)
    return Transcript(iso_639_1(heard.language) if text else None, text, said, duration_seconds)


class SpeechUnavailable(OperatorError):
    """SPEECH_TRANSCRIPTION=on, and something for it is missing."""


def available(settings: SpeechSettings) -> bool:
    """Return whether speech is transcribed; raise SpeechUnavailable when it should and can't be."""
    if settings.transcription == "off":
        return False
    needed = _needed()
    if needed and settings.transcription == "on":
        raise SpeechUnavailable(f"SPEECH_TRANSCRIPTION=on needs {' and '.join(needed)}.")
    return not needed


def make_transcriber(settings: SpeechSettings) -> Transcriber | None:
    """Return the transcriber, None where speech is not transcribed. Raise as `available` does."""
    return WhisperTranscriber(settings.whisper_model) if available(settings) else None


def _needed() -> list[str]:
    needed = [] if whisper.is_installed() else ["Whisper (`pip install 'backlot[whisper]'`)"]
    programs = ffmpeg.missing()
    return [*needed, f"{' and '.join(programs)} on the PATH"] if programs else needed

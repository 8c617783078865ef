"""The port of transcribers, which write down the speech of a video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


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
    """The recogniser ended without a transcript."""


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

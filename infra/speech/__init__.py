"""What is said in videos: one port, and Whisper behind it where the extra is installed."""

from __future__ import annotations

from infra.speech.choosing import SpeechUnavailable, available, make_transcriber
from infra.speech.port import (
    MediaTooLarge,
    MediaUnreadable,
    Segment,
    SpeechError,
    Transcriber,
    Transcript,
    TranscriptionFailed,
    TranscriptionTimedOut,
)
from infra.speech.whisper import Limits, WhisperTranscriber

__all__ = [
    "Limits",
    "MediaTooLarge",
    "MediaUnreadable",
    "Segment",
    "SpeechError",
    "SpeechUnavailable",
    "Transcriber",
    "Transcript",
    "TranscriptionFailed",
    "TranscriptionTimedOut",
    "WhisperTranscriber",
    "available",
    "make_transcriber",
]

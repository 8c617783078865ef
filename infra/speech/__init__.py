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
from infra.speech.whisper import TranscriptionLimits, WhisperTranscriber

__all__ = [
    "MediaTooLarge",
    "MediaUnreadable",
    "Segment",
    "SpeechError",
    "SpeechUnavailable",
    "Transcriber",
    "Transcript",
    "TranscriptionFailed",
    "TranscriptionLimits",
    "TranscriptionTimedOut",
    "WhisperTranscriber",
    "available",
    "make_transcriber",
]

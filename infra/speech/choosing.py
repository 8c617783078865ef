"""Whether this program writes down what is said in videos, from its settings and what is here."""

from __future__ import annotations

from infra import whisper
from infra.errors import OperatorError
from infra.settings.adapters import SpeechSettings
from infra.speech import ffmpeg
from infra.speech.port import Transcriber
from infra.speech.whisper import WhisperTranscriber


class SpeechUnavailable(OperatorError):
    """SPEECH_TRANSCRIPTION=on, and something for it is missing."""


def available(settings: SpeechSettings) -> bool:
    """Whether speech is transcribed here. Raises SpeechUnavailable when it should and can't be."""
    if settings.transcription == "off":
        return False
    needed = _needed()
    if needed and settings.transcription == "on":
        raise SpeechUnavailable(f"SPEECH_TRANSCRIPTION=on needs {' and '.join(needed)}.")
    return not needed


def make_transcriber(settings: SpeechSettings) -> Transcriber | None:
    """The transcriber, or None where speech is not transcribed. Raises as `available` does."""
    return WhisperTranscriber(settings.whisper_model) if available(settings) else None


def _needed() -> list[str]:
    needed = [] if whisper.is_installed() else ["Whisper (`pip install 'backlot[whisper]'`)"]
    programs = ffmpeg.missing()
    return [*needed, f"{' and '.join(programs)} on the PATH"] if programs else needed

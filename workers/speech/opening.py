"""Puts the transcription of videos together from the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from commands.bus import CommandBus
from infra.objects import ObjectStore
from infra.objects.choosing import make_s3
from infra.settings.adapters import ObjectSettings, SpeechSettings
from infra.speech import available, make_transcriber
from workers.speech.task import SpeechTranscription

MediaUrl = Callable[[str], str]
MEDIA_TYPE, MEDIA_NAME = "application/octet-stream", "media"


def wanted(settings: SpeechSettings) -> bool:
    """Whether uploads are to be transcribed, here or by another process."""
    return settings.transcription == "on" or (
        settings.transcription == "auto" and available(settings)
    )


def open_speech(
    settings: SpeechSettings, bus: CommandBus, media_url: MediaUrl | None
) -> SpeechTranscription | None:
    """What transcribes, where Whisper and the objects are at hand; raises OperatorError."""
    transcriber = None if media_url is None else make_transcriber(settings)
    if transcriber is None or media_url is None:
        return None
    return SpeechTranscription(bus, transcriber, media_url)


@contextmanager
def media_urls(
    settings: ObjectSettings, here: ObjectStore | None = None, base_url: str = ""
) -> Iterator[MediaUrl | None]:
    """Where this process reads objects: S3 as it reaches it, else the store that is here."""
    if settings.bucket is not None:
        with closing(make_s3(settings, for_clients=False)) as store:
            yield lambda key: store.get_url(key, MEDIA_TYPE, MEDIA_NAME, "").url
    elif here is not None:
        yield lambda key: here.get_url(key, MEDIA_TYPE, MEDIA_NAME, base_url).url
    else:
        yield None

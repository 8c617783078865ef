"""One task per video: hear what is said in it, and record that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from commands.upload_queries import FindUntranscribed
from commands.uploads import RecordSpeech
from domain.model import SystemActor
from engine.command_bus import CommandBus
from engine.messages import MessageBatch
from engine.subscription import Subscription
from infra.metrics import counter
from infra.objects.port import ObjectStore
from infra.settings.adapters import ObjectSettings, SpeechSettings
from infra.speech import SpeechError, Transcriber, available, make_transcriber
from infra.tasks.queues import TaskOrigin
from projections.integration_events import UPLOAD_COMPLETED
from workers.tasks import TaskConsumer, execute

if TYPE_CHECKING:
    from workers.parts import Parts
    from workers.tasks import Tasks

log = structlog.get_logger(__name__)

MediaUrl = Callable[[str], str]

ACTOR = SystemActor.TRANSCRIPTION

TRANSCRIPTS = counter(
    "backlot_transcripts",
    "Videos that a task has dealt with: done, failed, nothing_to_do.",
    ("outcome",),
)


@dataclass(frozen=True)
class SpeechTranscription:
    """Transcribes videos; `media_url` says where the object of a key can be read."""

    bus: CommandBus
    transcriber: Transcriber
    media_url: MediaUrl

    async def run(self, video_id: UUID, origin: TaskOrigin) -> None:
        """Transcribe the video, unless this model has heard it or it is gone.

        Raise Postponed when the event store is away, and SpeechError when another attempt may
        succeed; a video that can't be heard stays without a transcript.
        """
        model = self.transcriber.name
        key = await execute(self.bus, FindUntranscribed(video_id, model), ACTOR, origin)
        if key is None:
            TRANSCRIPTS.labels("nothing_to_do").inc()
            return
        try:
            heard = await self.transcriber.transcribe(self.media_url(key))
        except SpeechError as error:
            if error.retryable:
                raise
            log.warning("video_not_transcribed", video_id=str(video_id), error=str(error))
            TRANSCRIPTS.labels("failed").inc()
            return
        record = RecordSpeech(video_id, heard.language, heard.text, heard.duration_seconds, model)
        await execute(self.bus, record, ACTOR, origin)
        TRANSCRIPTS.labels("done").inc()


class SpeechConsumer(TaskConsumer):
    """Sends `transcribe_video`."""

    name = "speech"
    topics = frozenset((UPLOAD_COMPLETED,))
    subject = "videoId"


MEDIA_TYPE, MEDIA_NAME = "application/octet-stream", "media"


def wanted(settings: SpeechSettings) -> bool:
    """Return whether uploads are to be transcribed, here or by another process."""
    return settings.transcription == "on" or (
        settings.transcription == "auto" and available(settings)
    )


def open_speech(
    settings: SpeechSettings, bus: CommandBus, media_url: MediaUrl | None
) -> SpeechTranscription | None:
    """Return what transcribes, None without Whisper or the objects. Raise OperatorError."""
    if media_url is None or (transcriber := make_transcriber(settings)) is None:
        return None
    return SpeechTranscription(bus, transcriber, media_url)


@contextmanager
def media_urls(
    settings: ObjectSettings, here: ObjectStore | None = None, base_url: str = ""
) -> Iterator[MediaUrl | None]:
    """Yield where this process reads objects: S3 as it reaches it, else the store that is here."""
    if settings.bucket is not None:
        # Its library is slow to import, and not needed where objects lie in a folder.
        from infra.objects.s3 import S3Store

        with closing(S3Store(settings, for_clients=False)) as store:
            yield lambda key: store.get_url(key, MEDIA_TYPE, MEDIA_NAME, "").url
    elif here is not None:
        yield lambda key: here.get_url(key, MEDIA_TYPE, MEDIA_NAME, base_url).url
    else:
        yield None


def subscriptions(
    parts: Parts, bus: CommandBus, tasks: Tasks
) -> Iterator[Subscription[MessageBatch]]:
    """Have completed videos transcribed, where that is wanted."""
    if wanted(parts.settings.speech):
        yield parts.consume(SpeechConsumer(tasks.transcribe_video))

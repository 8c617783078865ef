"""One task per video: hear what is said in it, and record that."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import structlog

from commands.bus import CommandBus
from commands.queries import FindUntranscribed
from commands.speech import RecordSpeech
from infra.metrics import counter
from infra.speech import SpeechError, Transcriber
from infra.tasks import TaskOrigin
from workers.executing import execute

log = structlog.get_logger(__name__)

ACTOR = "transcription"

TRANSCRIPTS = counter(
    "backlot_transcripts",
    "Videos that a task has dealt with: done, failed, nothing_to_do.",
    ("outcome",),
)


class SpeechTranscription:
    """Transcribes videos; `media_url` says where the object of a key can be read."""

    def __init__(
        self, bus: CommandBus, transcriber: Transcriber, media_url: Callable[[str], str]
    ) -> None:
        self._bus, self._transcriber, self._media_url = bus, transcriber, media_url

    async def run(self, video_id: UUID, origin: TaskOrigin) -> None:
        """Transcribe the video, unless this model has heard it or it is gone.

        Raises Postponed when the event store is away, and SpeechError when another attempt may
        succeed; a video that can't be heard stays without a transcript.
        """
        model = self._transcriber.name
        key = await execute(self._bus, FindUntranscribed(video_id, model), ACTOR, origin)
        if key is None:
            TRANSCRIPTS.labels("nothing_to_do").inc()
            return
        try:
            heard = await self._transcriber.transcribe(self._media_url(key))
        except SpeechError as error:
            if error.retryable:
                raise
            log.warning("video_not_transcribed", video_id=str(video_id), error=str(error))
            TRANSCRIPTS.labels("failed").inc()
            return
        record = RecordSpeech(video_id, heard.language, heard.text, heard.duration_seconds, model)
        await execute(self._bus, record, ACTOR, origin)
        TRANSCRIPTS.labels("done").inc()

"""A video's task on a real log: what is heard is recorded once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from infra.settings import load_settings
from infra.speech import MediaUnreadable, Transcript
from infra.tasks.queues import TaskOrigin
from tests.integration.buses import decided, open_bus
from tests.integration.event_log import logged
from tests.integration.projection_support import Writer, origin
from workers.speech import SpeechTranscription, media_urls, open_speech, wanted

ORIGIN = TaskOrigin("conversation", "cause")
SPOKEN = Transcript("es", "Llueve otra vez.", (), 61.5)


class Heard:
    """A transcriber that hears what it is told to, and knows what it was asked."""

    name = "whisper/test"

    def __init__(self, *answers: Transcript | Exception) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    async def transcribe(self, media: Path | str) -> Transcript:
        self.asked.append(str(media))
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def run(writer: Writer, heard: Heard, video: UUID) -> None:
    async def scenario() -> None:
        async with open_bus(writer.recorder) as bus:
            speech = SpeechTranscription(bus, heard, lambda key: f"http://media/{key}")
            await speech.run(video, ORIGIN)

    asyncio.run(scenario())


def test_what_is_said_is_recorded_once(database_url: str, writer: Writer) -> None:
    video, heard = writer.video().id, Heard(SPOKEN)
    run(writer, heard, video)
    run(writer, heard, video)
    assert heard.asked == [f"http://media/videos/{video}"]
    assert decided(database_url, video) == ["started", "completed", "speech_transcribed"]
    event = vars(writer.mapper.to_domain_event(logged(database_url)[3]))
    assert (event["spoken_language"], event["transcript"]) == ("es", "Llueve otra vez.")
    assert (event["duration_seconds"], event["model"]) == (61.5, "whisper/test")
    assert (event["actor"], event["correlation_id"]) == ("transcription", "conversation")


def test_nobody_speaks(database_url: str, writer: Writer) -> None:
    video = writer.video().id
    run(writer, Heard(Transcript(None, "", (), 3.0)), video)
    assert decided(database_url, video)[-1] == "speech_transcribed"


def test_what_may_be_readable_later_is_left_to_another_attempt(
    database_url: str, writer: Writer
) -> None:
    video, heard = writer.video().id, Heard(MediaUnreadable("away", retryable=True), SPOKEN)
    with pytest.raises(MediaUnreadable):
        run(writer, heard, video)
    run(writer, heard, video)
    assert decided(database_url, video)[-1] == "speech_transcribed"


def test_what_is_no_medium_stays_without_a_transcript(database_url: str, writer: Writer) -> None:
    video = writer.video().id
    run(writer, Heard(MediaUnreadable("no medium")), video)
    assert decided(database_url, video) == ["started", "completed"]


def test_only_of_a_video(writer: Writer) -> None:
    heard, removed = Heard(), writer.video()
    removed.remove(origin("alice"))
    writer.save(removed)
    for stream in (removed.id, writer.upload().id, uuid4()):
        run(writer, heard, stream)
    assert heard.asked == []


def test_this_program_reads_the_store_where_it_reaches_it() -> None:
    settings = load_settings(
        {
            "S3_BUCKET": "media",
            "S3_REGION": "us-east-1",
            "S3_ENDPOINT_URL": "http://minio:9000",
            "S3_PUBLIC_ENDPOINT_URL": "https://media.example.org",
            "S3_ACCESS_KEY_ID": "key",
            "S3_SECRET_ACCESS_KEY": "secret",
        }
    )
    with media_urls(settings.objects) as media_url:
        assert media_url is not None
        assert media_url(f"videos/{uuid4()}").startswith("http://minio:9000/media/videos/")
    with media_urls(load_settings({}).objects) as nowhere:
        assert nowhere is None


def test_off(writer: Writer) -> None:
    settings = load_settings({"SPEECH_TRANSCRIPTION": "off"})
    assert not wanted(settings.speech)

    async def scenario() -> None:
        async with open_bus(writer.recorder) as bus:
            assert open_speech(settings.speech, bus, str) is None

    asyncio.run(scenario())
    # Another process may have Whisper where this one has not.
    assert wanted(load_settings({"SPEECH_TRANSCRIPTION": "on"}).speech)

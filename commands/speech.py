"""What is said in a video, recorded: replays need no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from domain.model import Origin
from domain.upload import Upload
from engine.command_bus import Aggregates, Command


@dataclass(frozen=True)
class RecordSpeech(Command[None]):
    """Record a transcript; nothing is recorded for a video that is gone."""

    video_id: UUID
    spoken_language: str | None
    transcript: str
    duration_seconds: float | None
    model: str

    def streams(self) -> Sequence[UUID]:
        return (self.video_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> None:
        aggregates.get(Upload, self.video_id).transcribe(
            self.spoken_language, self.transcript, self.duration_seconds, self.model, origin
        )

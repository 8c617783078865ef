"""Has each completed upload transcribed."""

from __future__ import annotations

from infra.integration.topics import UPLOAD_COMPLETED
from workers.task_consumer import TaskConsumer


class SpeechConsumer(TaskConsumer):
    """Sends `transcribe_video`."""

    name = "speech"
    topics = frozenset((UPLOAD_COMPLETED,))
    subject = "videoId"

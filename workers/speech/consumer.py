"""Has each completed upload transcribed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from dramatiq import Actor

from infra.integration.topics import UPLOAD_COMPLETED
from infra.tasks import enqueue
from workers.consuming.messages import Received


class SpeechConsumer:
    """Sends the tasks; one that is sent twice finds its work done."""

    name = "speech"
    topics = frozenset((UPLOAD_COMPLETED,))

    def __init__(self, transcribe_video: Actor[..., Any]) -> None:
        self._task = transcribe_video

    async def handle(self, batch: Sequence[Received]) -> None:
        """Raises BrokerAway; then all of the batch is sent again."""
        await asyncio.to_thread(self._send, batch)

    def _send(self, batch: Sequence[Received]) -> None:
        for message in batch:
            enqueue(
                self._task,
                message.value["videoId"],
                correlation_id=message.correlation_id,
                causation_id=str(message.id),
            )

"""Has each posted or edited comment translated: one task per comment and text."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from dramatiq import Actor

from infra.integration.topics import COMMENT_CREATED, COMMENT_EDITED
from infra.tasks import enqueue
from workers.consuming.messages import Received


class TranslationConsumer:
    """Sends the tasks; one that is sent twice finds its work done."""

    name = "translation"
    topics = frozenset((COMMENT_CREATED, COMMENT_EDITED))

    def __init__(self, translate_comment: Actor[..., Any]) -> None:
        self._task = translate_comment

    async def handle(self, batch: Sequence[Received]) -> None:
        """Raises BrokerAway; then all of the batch is sent again."""
        await asyncio.to_thread(self._send, batch)

    def _send(self, batch: Sequence[Received]) -> None:
        # A task works on the newest text, so that one is enough for several edits.
        for comment_id, message in {each.value["commentId"]: each for each in batch}.items():
            enqueue(
                self._task,
                comment_id,
                correlation_id=message.correlation_id,
                causation_id=str(message.id),
            )

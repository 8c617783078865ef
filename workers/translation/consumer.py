"""Has each posted or edited comment translated."""

from __future__ import annotations

from infra.integration.topics import COMMENT_CREATED, COMMENT_EDITED
from workers.task_consumer import TaskConsumer


class TranslationConsumer(TaskConsumer):
    """Sends `translate_comment`."""

    name = "translation"
    topics = frozenset((COMMENT_CREATED, COMMENT_EDITED))
    subject = "commentId"

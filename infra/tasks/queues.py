"""The names of the queues: operators and gauges see these, so tasks may use no other."""

from __future__ import annotations

from typing import Final

from dramatiq import Broker
from dramatiq.middleware import Middleware

from infra.tasks.errors import UnknownQueue

TRANSLATION: Final = "translation"
SPEECH: Final = "speech"
RECOMMENDATIONS: Final = "recommendations"
QUEUES: Final = (TRANSLATION, SPEECH, RECOMMENDATIONS)


class KnownQueues(Middleware):
    """Refuses an actor whose queue is not named here."""

    def before_declare_queue(self, broker: Broker, queue_name: str) -> None:
        if queue_name not in QUEUES:
            raise UnknownQueue(f"{queue_name!r} is none of the queues {', '.join(QUEUES)}")

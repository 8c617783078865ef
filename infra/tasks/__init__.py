"""Dramatiq as this program uses it: a broker by setting, and what every task may rely on.

A task runs at least once; whoever writes one makes running it twice harmless.
"""

from infra.tasks.app import configure
from infra.tasks.broker import make_broker, task_queues
from infra.tasks.correlation import TaskOrigin, current_origin
from infra.tasks.errors import BrokerAway, Postponed
from infra.tasks.failed import FailedTask
from infra.tasks.resources import Resources
from infra.tasks.sending import enqueue
from infra.tasks.worker import TaskWorker

__all__ = [
    "BrokerAway",
    "FailedTask",
    "Postponed",
    "Resources",
    "TaskOrigin",
    "TaskWorker",
    "configure",
    "current_origin",
    "enqueue",
    "make_broker",
    "task_queues",
]

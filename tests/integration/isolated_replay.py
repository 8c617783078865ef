"""A process that replays everything, and in which nobody can be reached but Redis.

PostgreSQL is reached through libpq, which Python's audit events do not show.
"""

from __future__ import annotations

import socket
import sys

from engine.inspection.index import Audit
from infra.redis import connect_blocking_redis
from projections.like_counters import Counters, renewing
from projections.likes import Likes
from projections.operations import Operations
from projections.translation import Translations
from tests.integration.replay_support import VERIFY, models, replayed

WAYS_OUT = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "subprocess.Popen")


class Outside(RuntimeError):
    """Somebody tried to reach something that is not part of a replay."""


def block_all_but(redis_port: int) -> None:
    """From here on, until the process ends."""

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event in WAYS_OUT and str(redis_port) not in str(arguments):
            raise Outside(f"{event} {arguments}")

    sys.addaudithook(look)


def main(database_url: str, redis_url: str, redis_port: int) -> None:
    block_all_but(redis_port)
    try:
        socket.create_connection(("127.0.0.1", 9))
    except Outside:
        sys.stderr.write("blocked\n")
    counters = Counters(connect_blocking_redis(redis_url), 600)
    after_switch = renewing(database_url, Likes(), counters)
    for projection in (*models().values(), Audit(), Operations(), Translations()):
        for options in ({}, {"options": VERIFY}):
            replay = replayed(database_url, projection, after_switch=after_switch, **options)
            sys.stderr.write(f"{projection.name} {replay.state} {replay.error}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

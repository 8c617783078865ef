"""Puts the like counters in Redis anew from the read model, while they are read and published.

No counter is missing or older for a moment: each is replaced by what the read model has now, which
is never behind it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import LiteralString
from uuid import UUID

import structlog
from psycopg import Connection
from psycopg.rows import TupleRow
from redis import RedisError

from engine.connections import connect
from infra.counters import Counters
from projections.counters import COUNTER_FAILURES, HEAD, WINDOW_EVENTS, counted
from projections.likes import Likes
from projections.replaying.progress import Progress, Report, tell_nobody
from projections.replaying.rows import Replay, ReplayState

log = structlog.get_logger(__name__)

NAME = "counters"
# A query that read the copy before the switch has put what it found into a missing counter by then.
FILL_SECONDS = 0.5

TOTAL: LiteralString = "SELECT count(*) FROM {schema}.counts"
NEXT_VIDEOS: LiteralString = (
    "SELECT video_id FROM {schema}.counts WHERE video_id > %s ORDER BY video_id LIMIT %s"
)


def rebuild(
    conn: Connection[TupleRow], likes: Likes, counters: Counters, report: Report = tell_nobody
) -> int:
    """Put the counters of all videos that have or had likes; returns how many there are.

    What is there for other videos is corrected too, and dropped where it belongs to another log.
    `report` hears of progress in counters. Raises redis.RedisError and OperationalError.
    """
    started = time.monotonic()
    (total,) = conn.execute(likes.sql(TOTAL)).fetchone() or (0,)
    done = 0
    for videos in _videos(conn, likes):
        _correct(conn, likes, counters, videos)
        done += len(videos)
        report(_progress(done, total, time.monotonic() - started))
    renew(conn, likes, counters)
    log.info("like_counters_rebuilt", counters=done, seconds=time.monotonic() - started)
    return done


def renew(conn: Connection[TupleRow], likes: Likes, counters: Counters) -> int:
    """Correct every counter that is in Redis, at equal positions too; returns how many there are.

    Raises redis.RedisError and OperationalError.
    """
    done = 0
    for videos in counters.all_videos():
        held = zip(videos, counters.get(videos), strict=True)
        (head,) = conn.execute(HEAD).fetchone() or (0,)
        counters.drop([video for video, counter in held if counter and counter.position > head])
        _correct(conn, likes, counters, videos)
        done += len(videos)
    return done


def renewing(database_url: str, likes: Likes, counters: Counters) -> Callable[[Replay], None]:
    """What has to be done after a switch; when Redis is away then, reconciling does it later."""

    def after_switch(replay: Replay) -> None:
        if replay.name != likes.name:
            return
        time.sleep(FILL_SECONDS)
        try:
            with connect(database_url, "like counters") as conn:
                done = renew(conn, likes, counters)
        except RedisError as error:
            COUNTER_FAILURES.inc()
            log.warning("like_counters_not_renewed", error=f"{type(error).__name__}: {error}")
        else:
            log.info("like_counters_renewed", counters=done)

    return after_switch


def _videos(conn: Connection[TupleRow], likes: Likes) -> Iterator[list[UUID]]:
    last = UUID(int=0)
    while rows := conn.execute(likes.sql(NEXT_VIDEOS), (last, WINDOW_EVENTS)).fetchall():
        last = rows[-1][0]
        yield [video for (video,) in rows]


def _correct(
    conn: Connection[TupleRow], likes: Likes, counters: Counters, videos: Iterable[UUID]
) -> None:
    _, now = counted(conn, likes, list(videos))
    counters.correct(now.items())


def _progress(done: int, total: int, seconds: float) -> Progress:
    rate = done / seconds if seconds > 0 else 0.0
    eta = max(0, total - done) / rate if rate > 0 else None
    return Progress(NAME, ReplayState.BUILDING, done, max(total, done), done, rate, eta)

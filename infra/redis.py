"""How this program reaches Redis: the configured server, or one inside this process.

Redis holds nothing that may not be lost, so nobody waits long for it.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import SecretStr
from redis import BlockingConnectionPool as BlockingPool
from redis import Redis as BlockingRedis
from redis import RedisError
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry as BlockingRetry

if TYPE_CHECKING:
    from fakeredis import FakeServer

CONNECT_SECONDS = 0.5
ANSWER_SECONDS = 1.0
CONNECTIONS = 64
DEFAULT_PORT = 6379
DATABASE = re.compile(r"/?[0-9]*")


def options() -> dict[str, Any]:
    """Return how a pool of connections for an event loop is made."""
    return {
        "max_connections": CONNECTIONS,
        "timeout": ANSWER_SECONDS,
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": ANSWER_SECONDS,
        # A counter that is told twice to add one is wrong, so no command is sent twice.
        "retry": Retry(NoBackoff(), 0),
        # With them, a connection that the server has closed is used once more before it is seen.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


class BadRedisUrl(ValueError):
    """What can't be the URL of a Redis; the text does not repeat it: it may hold a secret."""


def blocking_options() -> dict[str, Any]:
    """Return the same for threads."""
    return {**options(), "retry": BlockingRetry(NoBackoff(), 0)}


def open_redis(url: SecretStr | None) -> Redis:
    """Return a client for one event loop: of the server at `url`, or else of the embedded one.

    It connects when it is used; close it with `aclose()`. Commands answer bytes, and raise
    redis.RedisError after a second or two when Redis is away. None is repeated by itself: after
    a failure nobody knows whether it was carried out.
    """
    return embedded_redis() if url is None else connect_redis(url.get_secret_value())


def connect_redis(url: str) -> Redis:
    """Return a client of the server at a `redis://` or `rediss://` URL; raise BadRedisUrl."""
    check_redis_url(url)
    return Redis.from_pool(BlockingConnectionPool.from_url(url, **options()))


def connect_blocking_redis(url: str) -> BlockingRedis:
    """Return the same client for threads; raise BadRedisUrl."""
    check_redis_url(url)
    return BlockingRedis.from_pool(BlockingPool.from_url(url, **blocking_options()))


def check_redis_url(url: str) -> None:
    """Raise BadRedisUrl for what `connect_redis` would not take; nothing is opened."""
    if not url.startswith(("redis://", "rediss://")):
        raise BadRedisUrl("must start with redis:// or rediss://")
    try:
        # redis-py would take any other path for database 0.
        known = DATABASE.fullmatch(urlsplit(url).path) is not None
        pool = BlockingConnectionPool.from_url(url, **options())
        # Options in the URL are looked at only when a connection is made.
        pool.make_connection()  # type: ignore[no-untyped-call]
    except (RedisError, TypeError, ValueError):
        # What redis-py says may repeat the password.
        known = False
    if not known:
        raise BadRedisUrl("is not a Redis URL such as redis://user:password@host:6379/0")


def embedded_redis(server: FakeServer | None = None) -> Redis:
    """Return a client of a Redis inside this process: of the one that all share, or of `server`."""
    from fakeredis.aioredis import FakeAsyncRedisConnection

    pool = BlockingConnectionPool(
        connection_class=FakeAsyncRedisConnection,
        server=server or embedded_server(),
        client_class=Redis,
        **options(),
    )
    return Redis.from_pool(pool)


@functools.cache
def embedded_server() -> FakeServer:
    """Return the one Redis inside this process, for clients of every kind."""
    from fakeredis import FakeServer

    return FakeServer(version=(7, 4))


def server_of(url: str) -> str:
    """`host:port` of a URL that `connect_redis` takes; all databases of a server are one place."""
    parts = urlsplit(url)
    return f"{parts.hostname or 'localhost'}:{parts.port or DEFAULT_PORT}"


def address(client: Redis) -> str:
    """Return where a client's Redis is, for logs and metrics: `host:port`, or `embedded`."""
    known = client.connection_pool.connection_kwargs
    if {"server", "path"} & known.keys():
        return "embedded"
    return f"{known.get('host', 'localhost')}:{known.get('port', DEFAULT_PORT)}"

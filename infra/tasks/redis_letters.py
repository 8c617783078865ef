"""The queues as they lie in Redis; the keys are those of Dramatiq's own Lua script."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from dramatiq import Message
from dramatiq.common import dq_name, xq_name
from redis import Redis, RedisError

from infra.tasks.failed import FailedTask
from infra.tasks.letters import Depth, Wanted, away, read, revived
from infra.tasks.queues import QUEUES
from infra.tasks.redis_broker import NAMESPACE

# Enqueue and forget the dead letter in one step, unless it is gone already.
REDRIVE = """
local xq, xmsgs, q, msgs = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
if redis.call("zrem", xq, ARGV[1]) == 0 then
    return 0
end
redis.call("hdel", xmsgs, ARGV[1])
redis.call("hset", msgs, ARGV[1], ARGV[2])
redis.call("rpush", q, ARGV[1])
return 1
"""
PAGE = 500


def _key(name: str) -> str:
    return f"{NAMESPACE}:{name}"


class RedisTaskQueues:
    """`infra.tasks.letters.TaskQueues` over a client of its own; close the client."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._redrive = client.register_script(REDRIVE)

    def depths(self) -> list[Depth]:
        with away(RedisError):
            return [self._depth(queue) for queue in QUEUES]

    def dead(self, queue: str, limit: int) -> list[FailedTask]:
        with away(RedisError):
            keys = self._keys(queue, 0, limit - 1)
            return [task for _, task, _ in self._letters(queue, keys)]

    def redrive(self, queue: str, wanted: Wanted) -> list[str]:
        def send(key: str, task: FailedTask, message: Message[Any] | None) -> bool:
            return message is not None and wanted(task) and self._send(queue, key, message)

        return [task.id for task in self._take(queue, send)]

    def discard(self, queue: str, wanted: Wanted) -> list[FailedTask]:
        def drop(key: str, task: FailedTask, message: Message[Any] | None) -> bool:
            return wanted(task) and self._drop(queue, key)

        return self._take(queue, drop)

    def _take(
        self, queue: str, take: Callable[[str, FailedTask, Message[Any] | None], bool]
    ) -> list[FailedTask]:
        """The dead letters that `take` took out of the queue; what dies meanwhile is not asked."""
        taken: list[FailedTask] = []
        with away(RedisError):
            keys = self._keys(queue, 0, -1)
            for start in range(0, len(keys), PAGE):
                page = self._letters(queue, keys[start : start + PAGE])
                taken += [task for key, task, message in page if take(key, task, message)]
        return taken

    def _depth(self, queue: str) -> Depth:
        with self._client.pipeline() as pipe:
            pipe.llen(_key(queue))
            pipe.hlen(f"{_key(queue)}.msgs")
            pipe.hlen(f"{_key(dq_name(queue))}.msgs")
            pipe.zcard(_key(xq_name(queue)))
            waiting, messages, delayed, dead = pipe.execute()
        return Depth(queue, waiting, delayed, dead, taken=messages - waiting)

    def _keys(self, queue: str, first: int, last: int) -> list[str]:
        found = cast("list[bytes]", self._client.zrange(_key(xq_name(queue)), first, last))
        return [key.decode() for key in found]

    def _letters(
        self, queue: str, keys: list[str]
    ) -> list[tuple[str, FailedTask, Message[Any] | None]]:
        if not keys:
            return []
        found = cast("list[bytes | None]", self._client.hmget(f"{_key(xq_name(queue))}.msgs", keys))
        return [
            (key, *read(queue, key, data or b"")) for key, data in zip(keys, found, strict=True)
        ]

    def _send(self, queue: str, key: str, message: Message[Any]) -> bool:
        message = revived(message)
        message.options["redis_message_id"] = key
        keys = [_key(xq_name(queue)), f"{_key(xq_name(queue))}.msgs"]
        keys += [_key(queue), f"{_key(queue)}.msgs"]
        return bool(self._redrive(keys=keys, args=[key, message.encode()]))

    def _drop(self, queue: str, key: str) -> bool:
        with self._client.pipeline() as pipe:
            pipe.zrem(_key(xq_name(queue)), key)
            pipe.hdel(f"{_key(xq_name(queue))}.msgs", key)
            dropped, _ = pipe.execute()
        return bool(dropped)

"""The queues as they lie in Redis; the keys are those of Dramatiq's own Lua script."""

from __future__ import annotations

from typing import Any, cast

from dramatiq import Message
from dramatiq.common import dq_name, xq_name
from redis import Redis, RedisError

from infra.tasks.failed import FailedTask
from infra.tasks.letters import Depth, away, read, revived
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
            return [task for _, task, _ in self._letters(queue, 0, limit - 1)]

    def redrive(self, queue: str, task_id: str | None) -> list[str]:
        sent: list[str] = []
        with away(RedisError):
            # What dies meanwhile is not sent again and again.
            total = int(self._client.zcard(_key(xq_name(queue))))
            kept = 0
            while len(sent) + kept < total:
                page = self._letters(queue, kept, kept + PAGE - 1)
                if not page:
                    break
                for key, task, message in page:
                    if message is None or task_id not in (None, task.id):
                        kept += 1
                    elif self._send(queue, key, message):
                        sent.append(task.id)
        return sent

    def _depth(self, queue: str) -> Depth:
        with self._client.pipeline() as pipe:
            pipe.llen(_key(queue))
            pipe.hlen(f"{_key(queue)}.msgs")
            pipe.hlen(f"{_key(dq_name(queue))}.msgs")
            pipe.zcard(_key(xq_name(queue)))
            waiting, messages, delayed, dead = pipe.execute()
        return Depth(queue, waiting, delayed, dead, taken=messages - waiting)

    def _letters(
        self, queue: str, first: int, last: int
    ) -> list[tuple[str, FailedTask, Message[Any] | None]]:
        keys = cast("list[bytes]", self._client.zrange(_key(xq_name(queue)), first, last))
        if not keys:
            return []
        found = cast("list[bytes | None]", self._client.hmget(f"{_key(xq_name(queue))}.msgs", keys))
        ids = [key.decode() for key in keys]
        return [(key, *read(queue, key, data or b"")) for key, data in zip(ids, found, strict=True)]

    def _send(self, queue: str, key: str, message: Message[Any]) -> bool:
        message = revived(message)
        message.options["redis_message_id"] = key
        keys = [_key(xq_name(queue)), f"{_key(xq_name(queue))}.msgs"]
        keys += [_key(queue), f"{_key(queue)}.msgs"]
        return bool(self._redrive(keys=keys, args=[key, message.encode()]))

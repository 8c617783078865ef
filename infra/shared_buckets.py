"""Token buckets that all processes with the same Redis share."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, repeat
from typing import cast

from redis.asyncio import Redis

from infra.cache import OptionalRedis
from infra.http.rate_limits import CLOSE_ENOUGH, MOST_BUCKETS, BucketAnswer, Buckets, Limit
from infra.metrics import counter

# How long what was given on credit waits, so that one call of Redis takes it with that of others:
# where it is less than a quarter of the credit, until there is more. It is bounded by the credit,
# however long it waits.
REPORT_SECONDS = 5.0
REPORT_ALL_SECONDS = 60.0
RIPE_SHARE = 0.25
# A request waits no longer for Redis; then its process decides alone.
PATIENCE_SECONDS = 0.25
MOST_KEYS = 1_000
# The braces put all buckets into one slot of a cluster, as one script needs it.
PREFIX = "backlot:{limits}:"

# KEYS: the prefix. ARGV: the time in µs, or nothing for that of Redis; of each limit µs per token,
# and µs that a whole bucket takes; then the buckets, each as its key, the number of its limit from
# 0, tokens taken already, and tokens asked for. In one text each way: redis-py takes a microsecond
# for every argument and every element of an answer. Returns place from 0, tokens granted and µs
# until the bucket is full, of each that somebody asks, and of each that is more than a quarter
# spent: what others took of the rest is nothing that a process has to know.
TAKE = """
local now = tonumber(ARGV[1])
if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
end
local tokens, wholes = {}, {}
for token, whole in string.gmatch(ARGV[2], '(%S+) (%S+)') do
    tokens[#tokens + 1], wholes[#wholes + 1] = tonumber(token), tonumber(whole)
end
local answer, place = {}, 0
for name, limit, taken, asked in string.gmatch(ARGV[3], '(.-)\\n(%d+) (%d+) (%d+)\\n') do
    local key, token, whole = KEYS[1] .. name, tokens[limit + 1], wholes[limit + 1]
    asked = tonumber(asked)
    local full_at = math.max(tonumber(redis.call('GET', key) or '0'), now) + taken * token
    local granted = 0
    if asked > 0 then
        local left = math.floor((whole - (full_at - now)) / token + 0.001)
        granted = math.max(0, math.min(asked, left))
        full_at = full_at + granted * token
    end
    if full_at > now then
        local milliseconds = math.ceil((full_at - now) / 1000)
        redis.call('SET', key, string.format('%.0f', full_at), 'PX', milliseconds)
    end
    if asked > 0 or 4 * (full_at - now) > whole then
        answer[#answer + 1] = string.format('%d %d %.0f', place, granted, full_at - now)
    end
    place = place + 1
end
return table.concat(answer, ' ')
"""

FAILURES = counter(
    "backlot_rate_limit_failures",
    "Times that Redis did not answer for the rate limits; each process decided alone then.",
)


class Dues:
    """What the buckets of one limit are due to be told: tokens given on credit, and who asks.

    Plain dictionaries: objects for each bucket would have the garbage collector look at them.
    """

    __slots__ = ("limit", "taken", "waiting")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        # Those that somebody only waits for have 0 here.
        self.taken: dict[str, int] = {}
        self.waiting: dict[str, list[asyncio.Future[BucketAnswer | None]]] = {}

    def asked(self) -> Dues:
        """Take out the buckets that somebody waits for."""
        part = Dues(self.limit)
        part.waiting, self.waiting = self.waiting, {}
        part.taken = {key: self.taken.pop(key) for key in part.waiting}
        return part

    def ripe(self) -> Dues:
        """Take out those, and the ones that have given a good part of their credit."""
        part, least = self.asked(), self.limit.credit * RIPE_SHARE
        ripe = [key for key, taken in self.taken.items() if taken >= least]
        part.taken.update((key, self.taken.pop(key)) for key in ripe)
        return part


def _lines(dues: Iterable[Dues]) -> Iterator[tuple[str, str, Dues]]:
    """Yield each bucket: what the script is told of it, its key, and where it belongs to."""
    for number, each in enumerate(dues):
        waiting = each.waiting
        for key, taken in each.taken.items():
            asked = len(waiting[key]) if key in waiting else 0
            yield f"{key}\n{number} {taken} {asked}\n", key, each


class SharedBuckets(Buckets):
    """Buckets that all processes with the same Redis share.

    A process knows each bucket as Redis last told it, and gives up to a twentieth of it on credit,
    which it reports with that of others every few seconds, or of a few tokens every minute. Beyond
    that it asks, and all who ask at the same time share one call. So a bucket gives at most that
    twentieth more in each process, once: what was given is always paid back. Where Redis is away,
    each process goes on with what it knows.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        clock: Callable[[], float] = time.monotonic,
        redis_clock: Callable[[], float] | None = None,
        patience: float = PATIENCE_SECONDS,
        most: int = MOST_BUCKETS,
    ) -> None:
        """`redis_clock` stands in for the clock of Redis; both give seconds."""
        super().__init__(clock=clock, most=most)
        self._redis = OptionalRedis(redis, "rate_limits", FAILURES)
        self._script = redis.register_script(TAKE)
        self._redis_clock = redis_clock
        self._patience = patience
        self._dues: dict[int, Dues] = {}
        # Tokens given on credit that Redis is being told of: until it answers they count as such.
        self._telling: dict[str, int] = {}
        # When what is due is told, and when all of it; never, while nothing is.
        self._report_at = self._report_all_at = math.inf
        self._asked = False
        # Whether Redis failed the last time: only then is it worth looking whether it is away.
        self._unanswered = False
        self._call: asyncio.Task[None] | None = None

    def spend(self, key: str, limit: Limit, now: float) -> float | None:
        if self._unanswered and self._redis.away:
            return None
        dues = self._dues.get(id(limit)) or self._dues_of(limit)
        taken = dues.taken.get(key, 0)
        if taken + self._telling.get(key, 0) >= limit.credit:
            return None
        ahead = Buckets.spend(self, key, limit, now)
        if ahead is not None:
            dues.taken[key] = taken + 1
            if self._report_at == math.inf:
                self._report_later()
        return ahead

    async def take(self, key: str, limit: Limit, *, fails_open: bool = False) -> BucketAnswer:
        now = self.clock()
        if (ahead := self.spend(key, limit, now)) is not None:
            return BucketAnswer(limit, ahead)
        answer: BucketAnswer | None = None
        if not self._is_alone():
            answer = self._refusal(key, limit, now)
            # Others can only have taken more: nobody need be asked to say no.
            if not answer.wait:
                answer = await self._ask(key, limit)
        return answer or self._alone(key, limit, fails_open=fails_open)

    async def aclose(self) -> None:
        while any(dues.taken for dues in self._dues.values()) and not self._redis.away:
            self._report_at = self._report_all_at = 0.0
            self._settle_due()
            if self._call is not None:
                await asyncio.wait([self._call])
            await asyncio.sleep(0)

    def _is_alone(self) -> bool:
        return self._unanswered and self._redis.away

    def _alone(self, key: str, limit: Limit, *, fails_open: bool) -> BucketAnswer:
        if fails_open:
            return BucketAnswer(limit, 0.0, alone=True)
        return self._take(key, limit, self.clock())._replace(alone=True)

    def _dues_of(self, limit: Limit) -> Dues:
        return self._dues.setdefault(id(limit), Dues(limit))

    async def _ask(self, key: str, limit: Limit) -> BucketAnswer | None:
        """Return what Redis says; None where it says nothing in time."""
        answer: asyncio.Future[BucketAnswer | None] = asyncio.get_running_loop().create_future()
        dues = self._dues_of(limit)
        dues.taken.setdefault(key, 0)
        dues.waiting.setdefault(key, []).append(answer)
        if not self._asked:
            # Not at once: who asks in the same turn of the loop shares the call.
            self._asked = True
            asyncio.get_running_loop().call_soon(self._settle_due)
        await asyncio.wait([answer], timeout=self._patience)
        return answer.result() if answer.done() else None

    def _report_later(self) -> None:
        # Asked for only now: it is a system call on Python 3.11.
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._report_at = now + REPORT_SECONDS
        self._report_all_at = min(self._report_all_at, now + REPORT_ALL_SECONDS)
        loop.call_at(self._report_at, self._settle_due)

    def _settle_due(self) -> None:
        """Call Redis for those who ask, and in time for all; or once the present call has ended."""
        if self._call is not None:
            return
        loop = asyncio.get_running_loop()
        self._asked = False
        due = self._take_due(loop.time())
        if due:
            for dues in due:
                self._telling.update(dues.taken)
            self._call = loop.create_task(self._settle(due))
            self._call.add_done_callback(self._settled)

    def _take_due(self, now: float) -> list[Dues]:
        known = list(self._dues.values())
        if now < self._report_at:
            return [dues.asked() for dues in known if dues.waiting]
        kept = sum(len(dues.taken) for dues in known)
        if now >= self._report_all_at or kept >= self._most:
            self._dues = {}
            self._report_at = self._report_all_at = math.inf
            return [dues for dues in known if dues.taken]
        ripe = [dues.ripe() for dues in known]
        # The rest waits, whether or not anybody comes.
        self._report_later()
        return [dues for dues in ripe if dues.taken]

    def _settled(self, call: asyncio.Task[None]) -> None:
        self._call = None
        self._telling = {}
        if not call.cancelled():
            self._settle_due()

    async def _settle(self, dues: Sequence[Dues]) -> None:
        """Tell Redis of these buckets, so many at a time, and apply what it answers."""
        rates = [(each.limit.interval * 1e6, each.limit.window * 1e6) for each in dues]
        limits = " ".join(f"{token:.3f} {whole:.3f}" for token, whole in rates)
        buckets = _lines(dues)
        while some := list(islice(buckets, MOST_KEYS)):
            lines = "".join([line for line, _, _ in some])
            self._apply(some, await self._redis.ask(partial(self._ask_script, limits, lines)))

    async def _ask_script(self, limits: str, lines: str, redis: Redis) -> list[int]:
        now = "" if self._redis_clock is None else int(self._redis_clock() * 1e6)
        answer = await self._script(keys=[PREFIX], args=[now, limits, lines])
        return [int(word) for word in cast("bytes", answer).split()]

    def _apply(self, buckets: Sequence[tuple[str, str, Dues]], answer: list[int] | None) -> None:
        """Tell who waits, and know what Redis tells; None: it did not answer."""
        self._unanswered = answer is None
        if answer is None:
            for _, key, dues in buckets:
                _tell(dues.waiting.get(key, ()), repeat(None))
            return
        now = self.clock()
        for place, granted, left in zip(answer[::3], answer[1::3], answer[2::3], strict=True):
            _, key, dues = buckets[place]
            limit, ahead = dues.limit, left / 1e6
            # With what was given while Redis was asked.
            since = self._dues_of(limit).taken.get(key, 0)
            self._keep(key, now + ahead + since * limit.interval, now)
            _tell(dues.waiting.get(key, ()), _verdicts(limit, granted, ahead))


def _tell(
    waiting: Sequence[asyncio.Future[BucketAnswer | None]], verdicts: Iterable[BucketAnswer | None]
) -> None:
    # Those who wait are the shorter of both.
    for future, verdict in zip(waiting, verdicts, strict=False):
        if not future.done():
            future.set_result(verdict)


def _verdicts(limit: Limit, granted: int, ahead: float) -> Iterator[BucketAnswer]:
    """Yield what those who wait are told: so many get a token, all others none."""
    yield from repeat(BucketAnswer(limit, ahead), granted)
    yield from repeat(
        BucketAnswer(limit, ahead, max(CLOSE_ENOUGH, ahead + limit.interval - limit.window))
    )

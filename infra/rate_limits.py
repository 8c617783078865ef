"""Token buckets: how often each may do something, in one process or in all that share a Redis.

The algorithm is GCRA, the generic cell rate algorithm (ITU-T I.371, annex A): all that is kept of a
bucket is when it will be full again. What is taken moves that time on by what one token takes to
come back; nothing is given once it lies further ahead than the whole bucket takes.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple, cast

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.asyncio import Redis

from infra.cache import OptionalRedis
from infra.metrics import REGISTRY, counter

# Rounding must not cost a token.
CLOSE_ENOUGH = 1e-6
MOST_BUCKETS = 50_000
# What one process gives before it asks Redis, as a share of the bucket; nothing of small ones.
CREDIT_SHARE = 0.05
LEAST_BURST_ON_CREDIT = 100
# How long what was given on credit waits, so that one call of Redis takes it with that of others.
# It is bounded by the credit, however long it waits.
REPORT_SECONDS = 1.0
# A request waits no longer for Redis; then its process decides alone.
PATIENCE_SECONDS = 0.25
MOST_KEYS = 1_000
# The braces put all buckets into one slot of a cluster, as one script needs it.
PREFIX = "backlot:{limits}:"

# KEYS: the prefix. ARGV: the time in µs, or nothing for that of Redis; µs per token, and µs that a
# whole bucket takes; then the buckets, each as its key, tokens taken already, and tokens asked for.
# In one text each way: redis-py takes a microsecond for every argument and every element of an
# answer. Returns tokens granted and µs until the bucket is full, for each.
TAKE = """
local now = tonumber(ARGV[1])
if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
end
local token, whole = tonumber(ARGV[2]), tonumber(ARGV[3])
local answer = {}
for name, taken, asked in string.gmatch(ARGV[4], '(.-)\\n(%d+) (%d+)\\n') do
    local key = KEYS[1] .. name
    local full_at = math.max(tonumber(redis.call('GET', key) or '0'), now) + taken * token
    local left = math.floor((whole - (full_at - now)) / token + 0.001)
    local granted = math.max(0, math.min(tonumber(asked), left))
    full_at = full_at + granted * token
    if full_at > now then
        local milliseconds = math.ceil((full_at - now) / 1000)
        redis.call('SET', key, string.format('%.0f', full_at), 'PX', milliseconds)
    end
    answer[#answer + 1] = string.format('%.0f %.0f', granted, full_at - now)
end
return table.concat(answer, ' ')
"""

FAILURES = counter(
    "backlot_rate_limit_failures",
    "Times that Redis did not answer for the rate limits; each process decided alone then.",
)


class Decisions(Collector):
    """Decisions by class and outcome; an ordinary counter would cost more than the decision."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, name: str, outcome: str) -> None:
        """Count one decision: `allowed`, `limited`, or `fallback` where one was made alone."""
        self._counts[name, outcome] += 1

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(
            "backlot_rate_limit_decisions",
            "Requests by what the rate limits made of them (allowed, limited, fallback).",
            labels=("class", "outcome"),
        )
        for labels, count in list(self._counts.items()):
            family.add_metric(labels, count)
        return (family,)


DECISIONS = Decisions()
REGISTRY.register(DECISIONS)


@dataclass(frozen=True, slots=True)
class Limit:
    """A kind of bucket: `burst` tokens when it is full, of which `per_minute` come back."""

    name: str
    per_minute: float
    burst: int
    interval: float = field(init=False)
    """Seconds until one token is back."""
    window: float = field(init=False)
    """Seconds until all of them are."""
    credit: int = field(init=False)
    policy: bytes = field(init=False)
    """The field `RateLimit-Policy`."""

    def __post_init__(self) -> None:
        on_credit = self.burst >= LEAST_BURST_ON_CREDIT
        object.__setattr__(self, "interval", 60 / self.per_minute)
        object.__setattr__(self, "window", self.burst * 60 / self.per_minute)
        object.__setattr__(self, "credit", int(self.burst * CREDIT_SHARE) if on_credit else 0)
        policy = f'"{self.name}";q={self.burst};w={whole_seconds(self.window)}'
        object.__setattr__(self, "policy", policy.encode())

    def times(self, factor: float) -> Limit:
        """Return the same so many times as large."""
        return Limit(self.name, self.per_minute * factor, max(1, round(self.burst * factor)))


class BucketAnswer(NamedTuple):
    """What a bucket says: whether a token was given, and how it stands now.

    `ahead` are seconds until it is full, `wait` seconds until it has a token, 0 where it gave one.
    `alone` says that Redis was not asked, though others share the bucket there.
    """

    limit: Limit
    ahead: float
    wait: float = 0.0
    alone: bool = False

    @property
    def remaining(self) -> int:
        """Return how many tokens are left."""
        limit = self.limit
        return max(0, int((limit.window - self.ahead) / limit.interval + CLOSE_ENOUGH))

    @property
    def is_half_spent(self) -> bool:
        """Return whether at most half of the tokens are left."""
        return 2 * self.ahead >= self.limit.window

    def record(self) -> None:
        """Add the verdict to the metric."""
        outcome = "limited" if self.wait else "fallback" if self.alone else "allowed"
        DECISIONS.add(self.limit.name, outcome)


class LimitReached(Exception):
    """There is no token; `verdict` says when there is one."""

    def __init__(self, verdict: BucketAnswer) -> None:
        super().__init__(f"too many requests: {verdict.limit.name}")
        self.verdict = verdict


class Buckets:
    """The buckets of one process; to be used from one event loop."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, most: int = MOST_BUCKETS
    ) -> None:
        """`clock` gives seconds. Of more than `most` buckets those longest untouched are lost."""
        self._clock = clock
        self._most = most
        self._full_at: dict[str, float] = {}

    async def take(self, key: str, limit: Limit, *, fails_open: bool = False) -> BucketAnswer:
        """Take one token, if there is one. `fails_open` gives it where Redis can't be asked."""
        return self._take(key, limit)

    def take_at_once(self, key: str, limit: Limit) -> BucketAnswer | None:
        """Take one token, if there is one; None where that can only be awaited, with `take`."""
        return self._take(key, limit)

    async def aclose(self) -> None:
        """Say what was taken, so far as others have to know it."""

    def _take(self, key: str, limit: Limit, *, alone: bool = False) -> BucketAnswer:
        now, known = self._clock(), self._full_at
        before = known.get(key, now) - now
        if before < 0:
            before = 0.0
        ahead = before + limit.interval
        if ahead - limit.window > CLOSE_ENOUGH:
            return BucketAnswer(limit, before, ahead - limit.window, alone)
        if len(known) >= self._most and key not in known:
            self._make_room(now)
        self._full_at[key] = now + ahead
        return BucketAnswer(limit, ahead, 0.0, alone)

    def _make_room(self, now: float) -> None:
        """Forget those that are full, which is what an unknown one is; if need be, the oldest."""
        self._full_at = {key: at for key, at in self._full_at.items() if at > now}
        surplus = len(self._full_at) - self._most * 3 // 4
        for key in list(islice(self._full_at, max(0, surplus))):
            del self._full_at[key]


class Dues:
    """What the buckets of one limit are due to be told: tokens given on credit, and who asks.

    Plain dictionaries: objects for each bucket would have the garbage collector look at them.
    """

    __slots__ = ("limit", "taken", "waiting")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.taken: dict[str, int] = {}
        self.waiting: dict[str, list[asyncio.Future[BucketAnswer | None]]] = {}

    def __bool__(self) -> bool:
        return bool(self.taken or self.waiting)

    def cut(self) -> Iterator[Dues]:
        """Yield all of it, so many buckets at a time."""
        keys = iter({**self.taken, **self.waiting})
        while some := list(islice(keys, MOST_KEYS)):
            part = Dues(self.limit)
            part.taken = {key: self.taken.get(key, 0) for key in some}
            part.waiting = {key: self.waiting[key] for key in some if key in self.waiting}
            yield part


class SharedBuckets(Buckets):
    """Buckets that all processes with the same Redis share.

    A process knows each bucket as Redis last told it, and gives up to a twentieth of it on credit,
    which it reports with that of others every second. Beyond that it asks, and all who ask at the
    same time share one call. So a bucket gives at most that twentieth more in each process, once:
    what was given is always paid back. Where Redis is away, each process goes on with what it
    knows.
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
        self._due_at = math.inf
        # Whether Redis failed the last time: only then is it worth looking whether it is away.
        self._unanswered = False
        self._call: asyncio.Task[None] | None = None

    async def take(self, key: str, limit: Limit, *, fails_open: bool = False) -> BucketAnswer:
        if (verdict := self.take_at_once(key, limit)) is not None:
            return verdict
        answer = None if self._is_alone() else await self._ask(key, limit)
        return answer or self._alone(key, limit, fails_open=fails_open)

    def take_at_once(self, key: str, limit: Limit) -> BucketAnswer | None:
        if self._is_alone():
            return None
        due = self._dues.get(id(limit)) or self._due(limit)
        taken = due.taken.get(key, 0)
        if taken < limit.credit:
            verdict = self._take(key, limit)
            if not verdict.wait:
                due.taken[key] = taken + 1
                if self._due_at == math.inf:
                    self._settle_in(REPORT_SECONDS)
            return verdict
        ahead = self._full_at.get(key, 0.0) - self._clock()
        if (wait := ahead + limit.interval - limit.window) > CLOSE_ENOUGH:
            # Others can only have taken more: nobody need be asked to say no.
            return BucketAnswer(limit, ahead, wait)
        return None

    async def aclose(self) -> None:
        while any(self._dues.values()) and not self._redis.away:
            self._settle_in(0.0)
            if self._call is not None:
                await asyncio.wait([self._call])
            await asyncio.sleep(0)

    def _is_alone(self) -> bool:
        return self._unanswered and self._redis.away

    def _alone(self, key: str, limit: Limit, *, fails_open: bool) -> BucketAnswer:
        if fails_open:
            return BucketAnswer(limit, 0.0, alone=True)
        return self._take(key, limit, alone=True)

    def _due(self, limit: Limit) -> Dues:
        due = self._dues.get(id(limit))
        if due is None:
            due = self._dues[id(limit)] = Dues(limit)
        return due

    async def _ask(self, key: str, limit: Limit) -> BucketAnswer | None:
        """Return what Redis says; None where it says nothing in time."""
        answer: asyncio.Future[BucketAnswer | None] = asyncio.get_running_loop().create_future()
        self._due(limit).waiting.setdefault(key, []).append(answer)
        self._settle_in(0.0)
        await asyncio.wait([answer], timeout=self._patience)
        return answer.result() if answer.done() else None

    def _settle_in(self, seconds: float) -> None:
        """Call Redis that soon, or once the call that is under way has ended."""
        if self._call is not None or (seconds and self._due_at < math.inf):
            return
        # Asked for only now: it is a system call on Python 3.11.
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if due < self._due_at:
            self._due_at = due
            # An earlier one that is late finds nothing left to do.
            loop.call_at(due, self._begin)

    def _begin(self) -> None:
        self._due_at = math.inf
        if any(self._dues.values()) and self._call is None:
            self._call = asyncio.get_running_loop().create_task(self._settle())
            self._call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._call = None
        if any(self._dues.values()) and not call.cancelled():
            asked = any(due.waiting for due in self._dues.values())
            self._settle_in(0.0 if asked else REPORT_SECONDS)

    async def _settle(self) -> None:
        """Settle what is due now, so many buckets at a time."""
        dues, self._dues = self._dues, {}
        for due in dues.values():
            for part in due.cut():
                self._apply(part, await self._redis.ask(partial(self._ask_script, part)))

    async def _ask_script(self, due: Dues, redis: Redis) -> list[int]:
        now = "" if self._redis_clock is None else int(self._redis_clock() * 1e6)
        waiting, limit = due.waiting, due.limit
        buckets = "".join(
            f"{key}\n{taken} {len(waiting.get(key, ()))}\n" for key, taken in due.taken.items()
        )
        token, whole = f"{limit.interval * 1e6:.3f}", f"{limit.window * 1e6:.3f}"
        answer = await self._script(keys=[PREFIX], args=[now, token, whole, buckets])
        return [int(word) for word in cast("bytes", answer).split()]

    def _apply(self, due: Dues, answer: list[int] | None) -> None:
        """Tell who waits, and know the buckets as Redis does; None: it did not answer."""
        self._unanswered = answer is None
        if answer is None:
            for futures in due.waiting.values():
                _tell(futures, (None for _ in futures))
            return
        now, known, limit = self._clock(), self._full_at, due.limit
        since = self._due(limit).taken
        for key, granted, left in zip(due.taken, answer[::2], answer[1::2], strict=True):
            ahead = left / 1e6
            # With what was given while Redis was asked.
            known[key] = now + ahead + since.get(key, 0) * limit.interval
            if futures := due.waiting.get(key, []):
                _tell(futures, _verdicts(limit, len(futures), granted, ahead))


def _tell(
    waiting: Iterable[asyncio.Future[BucketAnswer | None]], verdicts: Iterable[BucketAnswer | None]
) -> None:
    for future, verdict in zip(waiting, verdicts, strict=True):
        if not future.done():
            future.set_result(verdict)


def _verdicts(limit: Limit, asked: int, granted: int, ahead: float) -> Iterator[BucketAnswer]:
    wait = max(CLOSE_ENOUGH, ahead + limit.interval - limit.window)
    for place in range(asked):
        yield BucketAnswer(limit, ahead, 0.0 if place < granted else wait)


def whole_seconds(seconds: float) -> int:
    """Return seconds as HTTP fields have them: whole, and 1 at least."""
    return max(1, math.ceil(seconds - CLOSE_ENOUGH))

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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple, cast

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.asyncio import Redis

from infra.metrics import REGISTRY, counter
from infra.redis import OptionalRedis

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

# KEYS: the prefix. ARGV: the time in µs, or nothing for that of Redis; then the limits, each as µs
# per token and µs that the whole bucket takes; then the buckets, each as its key, tokens taken
# already, tokens asked for and the number of its limit. In one text each way: redis-py takes a
# microsecond for every argument and every element of an answer. Returns tokens granted and µs until
# the bucket is full, for each.
TAKE = """
local now = tonumber(ARGV[1])
if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
end
local limits = {}
for token, whole in string.gmatch(ARGV[2], '(%S+) (%S+);') do
    limits[#limits + 1] = {tonumber(token), tonumber(whole)}
end
local answer = {}
for name, taken, asked, number in string.gmatch(ARGV[3], '(.-)\\n(%d+) (%d+) (%d+)\\n') do
    local key = KEYS[1] .. name
    local token, whole = limits[tonumber(number)][1], limits[tonumber(number)][2]
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


class Verdict(NamedTuple):
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

    def record(self) -> None:
        """Add the verdict to the metric."""
        outcome = "limited" if self.wait else "fallback" if self.alone else "allowed"
        DECISIONS.add(self.limit.name, outcome)

    def require(self) -> Verdict:
        """Return the verdict itself; raise LimitReached where it gives nothing."""
        if self.wait:
            raise LimitReached(self)
        return self


class LimitReached(Exception):
    """There is no token; `verdict` says when there is one."""

    def __init__(self, verdict: Verdict) -> None:
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

    async def take(self, key: str, limit: Limit, *, fails_open: bool = False) -> Verdict:
        """Take one token, if there is one. `fails_open` gives it where Redis can't be asked."""
        return self._take(key, limit)

    async def aclose(self) -> None:
        """Say what was taken, so far as others have to know it."""

    def _take(self, key: str, limit: Limit, *, alone: bool = False) -> Verdict:
        now, known = self._clock(), self._full_at
        before = known.get(key, now) - now
        if before < 0:
            before = 0.0
        ahead = before + limit.interval
        if ahead - limit.window > CLOSE_ENOUGH:
            return Verdict(limit, before, ahead - limit.window, alone)
        if len(known) >= self._most and key not in known:
            self._make_room(now)
        self._full_at[key] = now + ahead
        return Verdict(limit, ahead, 0.0, alone)

    def _make_room(self, now: float) -> None:
        """Forget those that are full, which is what an unknown one is; if need be, the oldest."""
        self._full_at = {key: at for key, at in self._full_at.items() if at > now}
        surplus = len(self._full_at) - self._most * 3 // 4
        for key in list(islice(self._full_at, max(0, surplus))):
            del self._full_at[key]


class Dues:
    """What one bucket is due to be told: tokens taken on credit, and who asks for one."""

    __slots__ = ("limit", "taken", "waiting")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.taken = 0
        self.waiting: list[asyncio.Future[Verdict | None]] = []


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
        self._dues: dict[str, Dues] = {}
        self._due_at = math.inf
        # Whether Redis failed the last time: only then is it worth looking whether it is away.
        self._unanswered = False
        self._call: asyncio.Task[None] | None = None

    async def take(self, key: str, limit: Limit, *, fails_open: bool = False) -> Verdict:
        if self._unanswered and self._redis.away:
            return self._alone(key, limit, fails_open=fails_open)
        due = self._dues.get(key)
        if (due.taken if due else 0) < limit.credit:
            verdict = self._take(key, limit)
            if not verdict.wait:
                (due or self._due(key, limit, REPORT_SECONDS)).taken += 1
            return verdict
        ahead = self._full_at.get(key, 0.0) - self._clock()
        if (wait := ahead + limit.interval - limit.window) > CLOSE_ENOUGH:
            # Others can only have taken more: nobody need be asked to say no.
            return Verdict(limit, ahead, wait)
        return await self._ask(key, limit) or self._alone(key, limit, fails_open=fails_open)

    async def aclose(self) -> None:
        while self._dues and not self._redis.away:
            self._settle_in(0.0)
            if self._call is not None:
                await asyncio.wait([self._call])
            await asyncio.sleep(0)

    def _alone(self, key: str, limit: Limit, *, fails_open: bool) -> Verdict:
        if fails_open:
            return Verdict(limit, 0.0, alone=True)
        return self._take(key, limit, alone=True)

    def _due(self, key: str, limit: Limit, seconds: float) -> Dues:
        """Return what is due to a bucket, which is to be settled within these seconds."""
        due = self._dues.get(key)
        if due is None:
            due = self._dues[key] = Dues(limit)
        self._settle_in(seconds)
        return due

    async def _ask(self, key: str, limit: Limit) -> Verdict | None:
        """Return what Redis says; None where it says nothing in time."""
        answer: asyncio.Future[Verdict | None] = asyncio.get_running_loop().create_future()
        self._due(key, limit, 0.0).waiting.append(answer)
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
        if self._dues and self._call is None:
            self._call = asyncio.get_running_loop().create_task(self._settle())
            self._call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._call = None
        if self._dues and not call.cancelled():
            asked = any(dues.waiting for dues in self._dues.values())
            self._settle_in(0.0 if asked else REPORT_SECONDS)

    async def _settle(self) -> None:
        """Settle the dues as they are now, so many at a time."""
        dues, self._dues = self._dues, {}
        items = iter(dues.items())
        while some := dict(islice(items, MOST_KEYS)):
            answer = await self._redis.ask(partial(self._ask_script, some))
            self._apply(some, answer)

    async def _ask_script(self, dues: Mapping[str, Dues], redis: Redis) -> list[int]:
        now = "" if self._redis_clock is None else int(self._redis_clock() * 1e6)
        limits = {id(due.limit): due.limit for due in dues.values()}
        numbers = {name: number for number, name in enumerate(limits, start=1)}
        buckets = "".join(
            f"{key}\n{due.taken} {len(due.waiting)} {numbers[id(due.limit)]}\n"
            for key, due in dues.items()
        )
        rates = "".join(
            f"{each.interval * 1e6:.3f} {each.window * 1e6:.3f};" for each in limits.values()
        )
        answer = await self._script(keys=[PREFIX], args=[now, rates, buckets])
        return [int(word) for word in cast("bytes", answer).split()]

    def _apply(self, dues: Mapping[str, Dues], answer: list[int] | None) -> None:
        """Tell who waits, and know the buckets as Redis does; None: it did not answer."""
        self._unanswered = answer is None
        now = self._clock()
        for place, (key, due) in enumerate(dues.items()):
            if answer is None:
                verdicts: Iterable[Verdict | None] = (None for _ in due.waiting)
            else:
                granted, ahead = answer[2 * place], answer[2 * place + 1] / 1e6
                if since := self._dues.get(key):
                    # Given while Redis was asked.
                    ahead += since.taken * due.limit.interval
                self._full_at[key] = now + ahead
                verdicts = _verdicts(due, granted, ahead)
            if due.waiting:
                _tell(due.waiting, verdicts)


def _tell(
    waiting: Iterable[asyncio.Future[Verdict | None]], verdicts: Iterable[Verdict | None]
) -> None:
    for future, verdict in zip(waiting, verdicts, strict=True):
        if not future.done():
            future.set_result(verdict)


def _verdicts(due: Dues, granted: int, ahead: float) -> Iterable[Verdict]:
    limit = due.limit
    wait = max(CLOSE_ENOUGH, ahead + limit.interval - limit.window)
    for place in range(len(due.waiting)):
        yield Verdict(limit, ahead, 0.0 if place < granted else wait)


def whole_seconds(seconds: float) -> int:
    """Return seconds as HTTP fields have them: whole, and 1 at least."""
    return max(1, math.ceil(seconds - CLOSE_ENOUGH))

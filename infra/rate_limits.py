"""Token buckets: how often each may do something, in one process or in all that share a Redis.

The algorithm is GCRA, the generic cell rate algorithm (ITU-T I.371, annex A): all that is kept of a
bucket is when it will be full again. What is taken moves that time on by what one token takes to
come back; nothing is given once it lies further ahead than the whole bucket takes.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, repeat
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


class Decisions(Collector):
    """Decisions by class and outcome; an ordinary counter would cost more than the decision."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = defaultdict(int)
        """By class, and `allowed`, `limited`, or `fallback` where a process decided alone."""

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(
            "backlot_rate_limit_decisions",
            "Requests by what the rate limits made of them (allowed, limited, fallback).",
            labels=("class", "outcome"),
        )
        for labels, count in list(self.counts.items()):
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
    farthest: float = field(init=False)
    """Seconds ahead at which a bucket may still lie, so that rounding costs no token."""
    credit: int = field(init=False)
    policy: bytes = field(init=False)
    """The field `RateLimit-Policy`."""

    def __post_init__(self) -> None:
        on_credit = self.burst >= LEAST_BURST_ON_CREDIT
        object.__setattr__(self, "interval", 60 / self.per_minute)
        object.__setattr__(self, "window", self.burst * 60 / self.per_minute)
        object.__setattr__(self, "farthest", self.window + CLOSE_ENOUGH)
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
        self.clock = clock
        self._most = most
        self._full_at: dict[str, float] = {}

    def spend(self, key: str, limit: Limit, now: float) -> float | None:
        """Take one token, `now` by the clock; return the seconds until the bucket is full again.

        None, and nothing is taken, where there is no token, or none without waiting: ask `take`.
        """
        full_at = self._full_at.get(key)
        if full_at is None:
            self._keep(key, now + limit.interval, now)
            return limit.interval
        ahead = limit.interval + full_at - now if full_at > now else limit.interval
        if ahead > limit.farthest:
            return None
        self._full_at[key] = now + ahead
        return ahead

    async def take(self, key: str, limit: Limit, *, fails_open: bool = False) -> BucketAnswer:
        """Take one token, if there is one. `fails_open` gives it where Redis can't be asked."""
        return self._take(key, limit, self.clock())

    async def aclose(self) -> None:
        """Say what was taken, so far as others have to know it."""

    def _take(self, key: str, limit: Limit, now: float) -> BucketAnswer:
        ahead = Buckets.spend(self, key, limit, now)
        return self._refusal(key, limit, now) if ahead is None else BucketAnswer(limit, ahead)

    def _refusal(self, key: str, limit: Limit, now: float) -> BucketAnswer:
        """Return what the bucket says without a token; its `wait` is 0 where it has one."""
        ahead = max(0.0, self._full_at.get(key, 0.0) - now)
        beyond = ahead + limit.interval - limit.window
        return BucketAnswer(limit, ahead, beyond if beyond > CLOSE_ENOUGH else 0.0)

    def _keep(self, key: str, full_at: float, now: float) -> None:
        if len(self._full_at) >= self._most and key not in self._full_at:
            self._make_room(now)
        self._full_at[key] = full_at

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


def whole_seconds(seconds: float) -> int:
    """Return seconds as HTTP fields have them: whole, and 1 at least."""
    return max(1, math.ceil(seconds - CLOSE_ENOUGH))

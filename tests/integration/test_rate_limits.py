"""Rate limits and quotas of several processes, on a real Redis and a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import Request, Response

from commands.endpoint import Quotas
from commands.uploads import ENDS
from domain.model import Origin
from domain.upload import Upload, object_key
from engine.reservations import Allowance, QuotaExceeded, Reservations
from infra import metrics
from infra.http.app import DirectRoute, HttpApp
from infra.http.auth import Authenticator, maybe_identity, mint_token
from infra.http.keys import OneKey
from infra.http.rate_limits import Limit, LimitReached, RateLimits
from infra.settings import load_settings
from infra.shared_buckets import SharedBuckets
from tests.integration.buses import record
from tests.integration.event_log import recording
from tests.integration.redis_servers import RedisServer, redis_servers
from tests.support import DEADLINE_SECONDS, until

pytestmark = pytest.mark.anyio
SECRET = "s" * 40


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Clock:
    """Seconds that pass when the test says so, for the processes and for Redis."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_servers(1, tmp_path) as (one,):
        yield one


Start = Callable[[], SharedBuckets]


@pytest.fixture
async def start(server: RedisServer, clock: Clock) -> AsyncIterator[Start]:
    """Starts what one process has of the buckets."""
    async with AsyncExitStack() as stack:

        def one() -> SharedBuckets:
            client = server.client()
            stack.push_async_callback(client.aclose)
            buckets = SharedBuckets(
                client,
                clock=clock,
                redis_clock=lambda: clock.now + 1.7e9,
                patience=DEADLINE_SECONDS,
            )
            stack.push_async_callback(buckets.aclose)
            return buckets

        yield one


def app(buckets: SharedBuckets, **settings: str) -> httpx.AsyncClient:
    """A process with a hot route for likes and a slow one for reads."""
    made = HttpApp(
        title="some",
        authenticator=Authenticator(OneKey(SECRET, ["HS256"])),
        body_limit=1000,
        translate={},
    )
    made.rate_limits = RateLimits(buckets, load_settings(settings).rate_limits)

    async def like(video_id: UUID, request: Request) -> Response:
        await maybe_identity(request)
        return Response()

    path = "/videos/{video_id}/like"
    made.router.routes.append(DirectRoute(path, like, methods=["PUT"]))

    @made.get("/videos")
    async def videos() -> dict[str, str]:
        return {}

    transport = httpx.ASGITransport(app=made, client=("192.0.2.1", 1))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


async def flood(clients: list[httpx.AsyncClient], users: list[str], likes: int) -> list[int]:
    """The statuses of so many likes, spread over the processes and the users, all at once."""
    tokens = [mint_token(SECRET, user) for user in users]

    async def one(number: int) -> int:
        headers = {"Authorization": f"Bearer {tokens[number % len(tokens)]}"}
        client = clients[number % len(clients)]
        return (await client.put(f"/videos/{uuid4()}/like", headers=headers)).status_code

    return list(await asyncio.gather(*map(one, range(likes))))


async def test_a_flood_of_likes_by_one_user_through_two_processes(
    start: Start, clock: Clock
) -> None:
    clients = [app(start(), RATE_LIMIT_WRITE="60/50") for _ in range(2)]
    statuses = await flood(clients, ["mallory"], 400)
    assert (statuses.count(200), statuses.count(429)) == (50, 350)
    assert await flood(clients, ["alice"], 4) == [200] * 4
    clock.now += 10
    assert (await flood(clients, ["mallory"], 100)).count(200) == 10


async def test_a_flood_by_one_address_with_many_users(start: Start) -> None:
    clients = [
        app(start(), RATE_LIMIT_WRITE="60/9", RATE_LIMIT_ADDRESS_FACTOR="8") for _ in range(2)
    ]
    socks = [f"sock-{number}" for number in range(100)]
    statuses = await flood(clients, socks, 600)
    assert (statuses.count(200), statuses.count(429)) == (72, 528)


async def test_large_buckets_are_exact_but_for_the_credit_of_each_process(start: Start) -> None:
    clients = [app(start(), RATE_LIMIT_WRITE="60/400") for _ in range(2)]
    credit = Limit("write", 60, 400).credit
    assert credit == 20
    given = (await flood(clients, ["mallory"], 1_000)).count(200)
    assert 400 <= given <= 400 + 2 * credit
    assert (await flood(clients, ["mallory"], 200)).count(200) == 0


async def test_a_bucket_in_redis_lasts_no_longer_than_it_is_needed(
    server: RedisServer, start: Start
) -> None:
    buckets = start()
    await buckets.take("write:u:ann", Limit("write", 0.1, 5))
    client = server.client()
    try:
        (key,) = await client.keys("*")
        assert key == b"backlot:{limits}:write:u:ann"
        assert 0 < await client.pttl(key) <= 600_000
    finally:
        await client.aclose()


async def test_one_call_of_redis_answers_all_who_ask_at_once(
    server: RedisServer, start: Start
) -> None:
    buckets, limit = start(), Limit("write", 60, 5)
    await buckets.take("warm", limit)
    client = server.client()
    try:
        await client.config_resetstat()
        asked = [buckets.take(f"user-{number}", limit) for number in range(300)]
        assert all(verdict.wait == 0 for verdict in await asyncio.gather(*asked))
        calls = await client.info("commandstats")
        assert calls["cmdstat_evalsha"]["calls"] == 1
    finally:
        await client.aclose()


@pytest.mark.redis_hangs
@pytest.mark.parametrize("away", ["killed", "paused"])
async def test_without_redis_writes_are_limited_by_the_process_and_reads_pass(
    server: RedisServer, clock: Clock, away: str
) -> None:
    redis = server.client()
    buckets = SharedBuckets(redis, clock=clock, patience=5)
    client = app(buckets, RATE_LIMIT_WRITE="60/20", RATE_LIMIT_READ="60/20")

    def decisions(kind: str) -> float:
        labels = {"class": kind, "outcome": "fallback"}
        return metrics.value("backlot_rate_limit_decisions_total", **labels)

    await until(lambda: answered(client))
    writes, reads = decisions("write"), decisions("read")
    server.kill() if away == "killed" else server.pause()
    statuses = await flood([client], ["mallory"], 100)
    assert (statuses.count(200), statuses.count(429)) == (20, 80)
    assert decisions("write") == writes + 20
    for _ in range(60):
        assert (await client.get("/videos")).status_code == 200
    assert decisions("read") == reads + 60
    server.start() if away == "killed" else server.resume()
    clock.now += 60
    await until(lambda: asks_redis(buckets))
    statuses = await flood([client], ["carol"], 100)
    assert (statuses.count(200), statuses.count(429)) == (20, 80)
    await buckets.aclose()
    await redis.aclose()


async def answered(client: httpx.AsyncClient) -> bool:
    return (await client.get("/videos")).status_code == 200


async def asks_redis(buckets: SharedBuckets) -> bool:
    verdict = await buckets.take(f"probe-{uuid4()}", Limit("probe", 60, 5))
    return not verdict.alone


async def test_comments_and_distinct_videos_liked_per_minute(start: Start, clock: Clock) -> None:
    settings = load_settings(
        {"QUOTA_COMMENTS_PER_MINUTE": "30", "QUOTA_LIKED_VIDEOS_PER_MINUTE": "40"}
    ).quotas
    processes = [Quotas(start(), settings) for _ in range(2)]

    async def taken(does: Callable[[Quotas], Awaitable[None]], times: int) -> int:
        done = 0
        for number in range(times):
            try:
                await does(processes[number % 2])
                done += 1
            except LimitReached:
                pass
        return done

    assert await taken(lambda quotas: quotas.comment("ann"), 100) == 30
    assert await taken(lambda quotas: quotas.comment("bob"), 20) == 20
    assert await taken(lambda quotas: quotas.like("ann", uuid4()), 100) == 40
    # Whoever can't make up their mind about one video likes one video.
    one = uuid4()
    assert await taken(lambda quotas: quotas.like("bob", one), 100) == 100
    assert await taken(lambda quotas: quotas.like("bob", uuid4()), 100) == 38
    clock.now += 30
    assert await taken(lambda quotas: quotas.comment("ann"), 100) == 15
    assert await taken(lambda quotas: quotas.like("ann", uuid4()), 100) == 20


class Days:
    """A clock of the wall."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 30, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def days() -> Days:
    return Days()


Reserve = Callable[[Allowance], Awaitable[Reservations]]


@pytest.fixture
async def reserve(database_url: str, days: Days) -> AsyncIterator[Reserve]:
    async with AsyncExitStack() as stack:

        async def one(allowance: Allowance) -> Reservations:
            found = Reservations(database_url, ENDS, allowance, clock=days)
            await found.open()
            stack.push_async_callback(found.aclose)
            return found

        yield one


def begun(upload_id: UUID, owner: str, at: datetime) -> Upload:
    upload = Upload.blank(upload_id)
    upload.start(
        Origin(owner, at, "correlation", "causation"),
        title="Rain",
        filename="rain.mp4",
        content_type="video/mp4",
        size_bytes=10,
        description=None,
        category=None,
        part_size_bytes=10,
        object_key=object_key(upload_id),
        store_upload_id="0" * 32,
    )
    return upload


async def test_open_uploads_are_counted_exactly_whatever_races(
    database_url: str, days: Days, reserve: Reserve
) -> None:
    processes = [await reserve(Allowance(open=7, per_day=10**12)) for _ in range(3)]
    with recording(database_url) as recorder:
        uploads: list[Upload] = []

        async def one(number: int, owner: str = "mallory") -> bool:
            upload_id = uuid4()
            try:
                async with processes[number % 3].hold(upload_id, owner, 10):
                    upload = begun(upload_id, owner, days.now)
                    await asyncio.to_thread(record, recorder, upload)
            except QuotaExceeded:
                return False
            uploads.append(upload)
            return True

        assert sum(await asyncio.gather(*map(one, range(40)))) == 7
        assert await one(0, "alice")
        # An end makes room for one more, at once: the log itself is asked.
        ended = next(each for each in uploads if each.owner == "mallory")
        ended.abort(Origin("mallory", days.now, "correlation", "causation"))
        record(recorder, ended)
        assert [await one(number) for number in range(3)] == [True, False, False]


async def test_bytes_are_those_under_way_and_those_of_a_day(
    database_url: str, days: Days, reserve: Reserve
) -> None:
    quota = await reserve(Allowance(open=100, per_day=1_000))
    with recording(database_url) as recorder:

        async def one(amount: int, *, ends: bool) -> None:
            upload_id = uuid4()
            async with quota.hold(upload_id, "mallory", amount):
                upload = begun(upload_id, "mallory", days.now)
                if ends:
                    upload.abort(Origin("mallory", days.now, "correlation", "causation"))
                await asyncio.to_thread(record, recorder, upload)

        await one(600, ends=True)
        await one(300, ends=False)
        with pytest.raises(QuotaExceeded) as caught:
            await one(101, ends=False)
        assert caught.value.quota == "upload-bytes"
        days.now += timedelta(hours=23)
        with pytest.raises(QuotaExceeded) as caught:
            await one(101, ends=False)
        assert caught.value.seconds == 3_600
        # After a day the one that ended counts no more, the one under way does.
        days.now += timedelta(hours=1)
        with pytest.raises(QuotaExceeded):
            await one(701, ends=False)
        await one(700, ends=False)


async def test_what_did_not_begin_is_given_back(days: Days, reserve: Reserve) -> None:
    quota = await reserve(Allowance(open=1, per_day=1_000))
    for _ in range(3):
        with pytest.raises(ConnectionError):
            async with quota.hold(uuid4(), "ann", 10):
                raise ConnectionError
    # Where a process died in the block, nobody gives it back: it counts for ten minutes.
    held = quota.hold(uuid4(), "ann", 10)
    await held.__aenter__()
    days.now += timedelta(minutes=9)
    with pytest.raises(QuotaExceeded):
        async with quota.hold(uuid4(), "ann", 10):
            pass
    days.now += timedelta(minutes=1)
    async with quota.hold(uuid4(), "ann", 10):
        pass

"""Token buckets of one process and of several, by a clock that the test moves."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from fakeredis import FakeServer
from fastapi import Request, Response
from fastapi.testclient import TestClient

from infra import metrics, shared_buckets
from infra.http.app import HttpApp
from infra.http.auth import Authenticator, maybe_identity, mint_token
from infra.http.keys import OneKey
from infra.http.rate_limits import Buckets, Limit, RateLimits
from infra.http.requests import Proxies, rate_class, subscriber
from infra.redis import embedded_redis
from infra.settings import load_settings
from infra.shared_buckets import SharedBuckets
from tests.routes import AUDITORS, MODERATORS, ROUTES, Line
from tests.support import until

pytestmark = pytest.mark.anyio
SECRET = "s" * 40

OF_OPERATORS = [
    line
    for line in ROUTES
    if line.may and line.may <= AUDITORS | MODERATORS and "{comment_id}" not in line.call
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def given(buckets: Buckets, limit: Limit, times: int, key: str = "k") -> int:
    """How many of so many requests get a token."""
    verdicts = [await buckets.take(key, limit) for _ in range(times)]
    return sum(verdict.wait == 0 for verdict in verdicts)


async def test_a_bucket_gives_its_burst_and_then_its_rate(clock: Clock) -> None:
    buckets, limit = Buckets(clock=clock), Limit("write", 60, 5)
    assert await given(buckets, limit, 20) == 5
    clock.now += 0.99
    assert await given(buckets, limit, 20) == 0
    clock.now += 0.01
    assert await given(buckets, limit, 20) == 1
    clock.now += 3
    assert await given(buckets, limit, 20) == 3
    clock.now += 1_000
    assert await given(buckets, limit, 20) == 5


async def test_a_verdict_tells_what_is_left_and_when_to_come_back(clock: Clock) -> None:
    buckets, limit = Buckets(clock=clock), Limit("write", 120, 4)
    told = [await buckets.take("k", limit) for _ in range(5)]
    assert [each.remaining for each in told] == [3, 2, 1, 0, 0]
    assert [each.ahead for each in told] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert [each.wait for each in told] == pytest.approx([0, 0, 0, 0, 0.5])


async def test_whatever_the_pace_no_window_holds_more_than_burst_and_rate(clock: Clock) -> None:
    random, limit = Random(7), Limit("write", 90, 10)
    buckets, times = Buckets(clock=clock), list[float]()
    for _ in range(3_000):
        clock.now += random.expovariate(4)
        if not (await buckets.take("k", limit)).wait:
            times.append(clock.now)
    for place, began in enumerate(times):
        for length in (10, 30, 100):
            if place + length < len(times):
                most = limit.burst + (times[place + length] - began) * limit.per_minute / 60
                assert length + 1 <= most + 1e-6


async def test_buckets_are_bounded_and_those_in_use_are_kept(clock: Clock) -> None:
    buckets, limit = Buckets(clock=clock, most=100), Limit("write", 60, 5)
    for number in range(10_000):
        clock.now += 0.1
        await buckets.take(f"passing-{number}", limit)
        if number % 10 == 0:
            await buckets.take("busy", limit)
        assert len(buckets._full_at) <= 100
    # It took as many as came back, so it was never forgotten: it is empty, not full.
    assert (await buckets.take("busy", limit)).remaining < 4


def test_what_is_not_given_at_once_is_not_taken(clock: Clock) -> None:
    buckets, limit = Buckets(clock=clock), Limit("write", 60, 2)
    assert [buckets.spend("k", limit, clock.now) for _ in range(4)] == [1.0, 2.0, None, None]
    clock.now += 1
    assert [buckets.spend("k", limit, clock.now) for _ in range(2)] == [2.0, None]


@pytest.fixture
def server() -> FakeServer:
    return FakeServer(version=(7, 4))


def shared(server: FakeServer, clock: Clock, **options: Any) -> SharedBuckets:
    """One of several processes."""
    return SharedBuckets(
        embedded_redis(server),
        clock=clock,
        redis_clock=lambda: clock.now + 1.7e9,
        patience=60,
        **options,
    )


async def test_processes_share_a_small_bucket_to_the_token(
    server: FakeServer, clock: Clock
) -> None:
    one, two = shared(server, clock), shared(server, clock)
    limit = Limit("write", 60, 10)
    assert [await given(one, limit, 6), await given(two, limit, 6)] == [6, 4]
    clock.now += 2
    assert [await given(two, limit, 6), await given(one, limit, 6)] == [2, 0]


async def test_at_once_in_two_processes_no_token_is_given_twice(
    server: FakeServer, clock: Clock
) -> None:
    processes = [shared(server, clock) for _ in range(2)]
    limit = Limit("write", 60, 50)
    asked = [processes[place % 2].take("k", limit) for place in range(200)]
    assert sum(verdict.wait == 0 for verdict in await asyncio.gather(*asked)) == 50


async def test_a_large_bucket_gives_on_credit_what_it_is_paid_back(
    server: FakeServer, clock: Clock
) -> None:
    processes = [shared(server, clock) for _ in range(4)]
    limit = Limit("write", 60, 200)
    taken = 0
    for _ in range(300):
        for process in processes:
            taken += (await process.take("k", limit)).wait == 0
    assert limit.burst <= taken <= limit.burst + 4 * limit.credit
    # What was given too early is paid back: in the long run it is the rate, not a token more.
    for _ in range(100):
        clock.now += 1
        for process in processes:
            taken += await given(process, limit, 3)
    assert limit.burst + 100 <= taken <= limit.burst + 100 + 4 * limit.credit


class Counted:
    """The script of some buckets, with the answers of Redis."""

    def __init__(self, buckets: SharedBuckets) -> None:
        self._script = buckets._script
        self.answers = list[bytes]()
        buckets._script = self.call  # type: ignore[assignment]

    async def call(self, keys: list[str], args: list[str]) -> object:
        answer = await self._script(keys=keys, args=args)
        self.answers.append(answer)
        return answer


async def test_credit_costs_one_call_for_many_buckets_of_all_limits(
    server: FakeServer, clock: Clock
) -> None:
    buckets = shared(server, clock)
    counted = Counted(buckets)
    limits = [Limit(f"limit {number}", 60 * number, 100 * number) for number in (1, 2, 3)]
    for number in range(100):
        for limit in limits:
            await buckets.take(f"{limit.name}:user-{number}", limit)
    await buckets.aclose()
    # Of buckets that are nearly full there is nothing to tell.
    assert counted.answers == [b""]
    keys = await buckets._redis.ask(lambda redis: redis.keys("*"))
    assert len(keys or ()) == 300


async def test_a_process_is_told_what_others_took_before_it_gives_more(
    server: FakeServer, clock: Clock
) -> None:
    one, two = shared(server, clock), shared(server, clock)
    limit = Limit("write", 60, 1_000)
    counted = Counted(two)
    assert await given(one, limit, 300) == 300
    await one.aclose()
    assert await given(two, limit, 10) == 10
    await two.aclose()
    assert counted.answers == [b"0 0 310000000"]
    answer = await two.take("k", limit)
    assert (answer.remaining, answer.alone) == (689, False)


async def test_who_asks_has_only_those_told_of_who_ask(server: FakeServer, clock: Clock) -> None:
    buckets, large, small = shared(server, clock), Limit("write", 60, 1_000), Limit("live", 60, 10)
    for number in range(100):
        await buckets.take(f"write:u:user-{number}", large)
    counted = Counted(buckets)
    asked = [buckets.take(f"live:u:user-{number}", small) for number in range(3)]
    assert [answer.remaining for answer in await asyncio.gather(*asked)] == [9] * 3
    assert counted.answers == [b"0 1 1000000 1 1 1000000 2 1 1000000"]
    await buckets.aclose()
    assert counted.answers[1:] == [b""]


async def test_of_a_few_tokens_redis_is_told_with_those_to_come(
    server: FakeServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_buckets, "REPORT_SECONDS", 0.0)
    buckets, limit = shared(server, clock), Limit("write", 60, 1_000)
    counted = Counted(buckets)

    async def keys_told() -> set[object]:
        return set(await buckets._redis.ask(lambda redis: redis.keys("*")) or ())

    least = math.ceil(limit.credit * shared_buckets.RIPE_SHARE)
    for number in range(50):
        await buckets.take(f"user-{number}", limit)
    assert await given(buckets, limit, least, "busy") == least
    await until(lambda: answered(counted))
    assert await keys_told() == {shared_buckets.PREFIX.encode() + b"busy"}
    # In a minute all of it is told, and at the end.
    buckets._report_all_at = 0.0
    await until(lambda: answered(counted, 2))
    assert len(await keys_told()) == 51
    await buckets.take("user-0", limit)
    await buckets.aclose()
    assert len(counted.answers) == 3


async def answered(counted: Counted, times: int = 1) -> bool:
    return len(counted.answers) >= times


async def test_credit_is_not_given_again_while_redis_is_being_told(
    server: FakeServer, clock: Clock
) -> None:
    buckets, limit = shared(server, clock), Limit("write", 60, 200)
    told, script, may_answer = asyncio.Event(), buckets._script, asyncio.Event()

    async def slow(keys: list[str], args: list[str]) -> object:
        told.set()
        await may_answer.wait()
        return await script(keys=keys, args=args)

    buckets._script = slow  # type: ignore[assignment]
    assert await given(buckets, limit, limit.credit) == limit.credit
    closing = asyncio.create_task(buckets.aclose())
    await told.wait()
    assert buckets.spend("k", limit, clock.now) is None
    may_answer.set()
    await closing
    assert buckets.spend("k", limit, clock.now) is not None
    await buckets.aclose()


@pytest.mark.parametrize("burst", [50, 200])
async def test_what_redis_tells_of_is_bounded_too(
    server: FakeServer, clock: Clock, burst: int
) -> None:
    buckets, limit = shared(server, clock, most=100), Limit("live", 60, burst)
    for number in range(300):
        await buckets.take(f"passing-{number}", limit)
    assert len(buckets._full_at) <= 100


def limits(buckets: Buckets, **settings: str) -> RateLimits:
    return RateLimits(buckets, load_settings(settings).rate_limits)


@pytest.fixture
def client(clock: Clock) -> Iterator[TestClient]:
    app = HttpApp(
        title="some",
        authenticator=Authenticator(OneKey(SECRET, ["HS256"])),
        body_limit=1000,
        translate={},
        proxies=Proxies(load_settings({"TRUSTED_PROXIES": "10.0.0.0/8"}).server.trusted_proxies),
    )
    app.rate_limits = limits(
        Buckets(clock=clock), RATE_LIMIT_WRITE="60/4", RATE_LIMIT_ADDRESS_FACTOR="2"
    )

    @app.post("/things")
    async def things(request: Request) -> Response:
        await maybe_identity(request)
        return Response()

    @app.get("/healthz")
    async def healthz() -> None: ...

    with TestClient(app, client=("10.1.2.3", 1)) as client:
        yield client


def post(client: TestClient, user: str | None, address: str = "192.0.2.1") -> Response:
    headers = {"X-Forwarded-For": address}
    if user is not None:
        headers["Authorization"] = f"Bearer {mint_token(SECRET, user)}"
    return client.post("/things", headers=headers)  # type: ignore[return-value]


def test_a_users_flood_is_refused_with_the_fields_of_the_draft(
    client: TestClient, clock: Clock
) -> None:
    before = metrics.value(
        "backlot_rate_limit_decisions_total", **{"class": "write", "outcome": "limited"}
    )
    answers = [post(client, "ann") for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 4 + [429] * 2
    # While most of it is left, nobody need be told.
    assert "ratelimit" not in answers[0].headers
    assert answers[1].headers["ratelimit-policy"] == '"write";q=4;w=4'
    told = [answer.headers["ratelimit"] for answer in answers[1:]]
    assert told == ['"write";r=2;t=2', '"write";r=1;t=3', *['"write";r=0;t=4'] * 3]
    refused = answers[-1]
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["retry-after"] == "1"
    body = refused.json()  # type: ignore[attr-defined]
    assert (body["type"], body["status"]) == ("rate-limited", 429)
    after = metrics.value(
        "backlot_rate_limit_decisions_total", **{"class": "write", "outcome": "limited"}
    )
    assert after == before + 2
    # Whoever keeps to it is served again; and nobody else was kept out.
    assert post(client, "bob").status_code == 200
    clock.now += 1
    assert post(client, "ann").status_code == 200


def test_many_users_at_one_address_share_its_bucket(client: TestClient) -> None:
    statuses = [post(client, f"sock-{number}").status_code for number in range(12)]
    assert statuses == [200] * 8 + [429] * 4
    assert post(client, "sock-0", address="192.0.2.2").status_code == 200


def test_who_has_no_token_or_a_false_one_has_a_smaller_bucket(client: TestClient) -> None:
    assert [post(client, None).status_code for _ in range(3)] == [200, 200, 429]
    false = {"Authorization": "Bearer nonsense", "X-Forwarded-For": "192.0.2.9"}
    statuses = [client.post("/things", headers=false).status_code for _ in range(3)]
    assert statuses == [401, 401, 429]


def test_health_is_asked_as_often_as_one_likes(client: TestClient) -> None:
    assert {client.get("/healthz").status_code for _ in range(200)} == {200}


def test_a_refused_request_costs_its_address_nothing(client: TestClient) -> None:
    for _ in range(50):
        post(client, "ann")
    assert [post(client, f"other-{number}").status_code for number in range(4)] == [200] * 4


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.7", "198.51.100.1", "192.0.2.7"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "203.0.113.5, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "203.0.113.5, 198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "nonsense, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
        ("10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
        ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "", "10.0.0.1"),
    ],
)
def test_only_a_trusted_proxy_says_who_the_client_is(
    peer: str, forwarded: str | None, client: str
) -> None:
    trusted = load_settings({"TRUSTED_PROXIES": "10.0.0.0/8"}).server.trusted_proxies
    header = None if forwarded is None else forwarded.encode()
    assert Proxies(trusted).client(peer, header) == client


def test_a_long_word_about_the_client_is_taken_but_not_remembered() -> None:
    proxies = Proxies(load_settings({"TRUSTED_PROXIES": "10.0.0.0/8"}).server.trusted_proxies)
    made_up = b"203.0.113.5, " * 1_000
    for number in range(10):
        address = f"198.51.100.{number}"
        assert proxies.client("10.0.0.1", made_up + address.encode()) == address
        assert proxies.client("10.0.0.1", address.encode()) == address
    assert proxies._remembered.cache_info().currsize == 10


def test_one_subscriber_of_ipv6_is_one_caller() -> None:
    assert subscriber("2001:db8:1:2::3") == subscriber("2001:db8:1:2:ffff::4")
    assert subscriber("2001:db8:1:2::3") != subscriber("2001:db8:1:3::3")
    assert subscriber("::ffff:192.0.2.1") == subscriber("192.0.2.1") == "192.0.2.1"
    assert subscriber("testclient") == "testclient"


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("PUT", "/videos/1/like", "write"),
        ("POST", "/videos/1/comments", "write"),
        ("DELETE", "/comments/1", "write"),
        ("POST", "/uploads", "upload"),
        ("POST", "/uploads/1/part-urls", "upload"),
        ("PUT", "/objects/videos/1", "upload"),
        ("GET", "/objects/videos/1", "watch"),
        ("POST", "/videos/1/watch", "watch"),
        ("POST", "/videos/1/watch-time", "watch"),
        ("POST", "/recommendations/1/shown", "watch"),
        ("GET", "/videos/1/events", "live"),
        ("GET", "/videos/1", "read"),
        ("GET", "/uploads/1", "read"),
        ("GET", "/analytics/trending", "read"),
        ("GET", "/users/1/stats", "read"),
        ("GET", "/users/1/export", "admin"),
        ("GET", "/audit/events", "admin"),
        ("POST", "/projections/likes/replay", "admin"),
        ("GET", "/metrics", "admin"),
        ("GET", "/nothing", "read"),
        ("BREW", "/nothing", "write"),
        ("GET", "/healthz", None),
        ("GET", "/readyz", None),
    ],
)
def test_each_request_belongs_to_a_class(method: str, path: str, name: str | None) -> None:
    assert rate_class(method, path) == name


@pytest.mark.parametrize("line", OF_OPERATORS)
def test_what_only_operators_may_call_is_a_class_of_its_own(line: Line) -> None:
    method, _, path = line.call.partition(" ")
    assert rate_class(method, path) == ("read" if path == "/analytics/recommendations" else "admin")


def test_defaults_let_a_person_be_and_stop_a_flood() -> None:
    settings = load_settings({}).rate_limits
    assert settings.on
    for rate in (settings.write, settings.read, settings.watch, settings.upload):
        assert rate.burst >= 300
        assert math.isfinite(rate.per_minute)
    assert settings.write.per_minute <= 3_600

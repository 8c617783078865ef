"""Getting the lock: votes, waiting, and how those who don't get it are told why."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable
from itertools import islice

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from infra import metrics
from infra.redlock import TURNS, LocksUnavailable, LockTaken, Redlock, kind_of, make_redlock
from tests.support import DEADLINE_SECONDS
from tests.unit.lock_nodes import KEY, Clock, Hanging, Nodes, Slow, nodes_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    async with nodes_of(3) as made:
        yield made


async def test_a_holder_has_one_random_token_on_every_node(nodes: Nodes) -> None:
    seen = set()
    for _ in range(3):
        async with nodes.redlock().hold(KEY, 30.0) as lease:
            assert re.fullmatch(r"[0-9a-f]{40}", lease.token)
            assert await nodes.tokens() == 3 * [lease.token.encode()]
            assert all(29_000 < left <= 30_000 for left in await nodes.remaining())
            assert not lease.lost
            seen.add(lease.token)
        assert await nodes.tokens() == [None, None, None]
    assert len(seen) == 3


async def test_one_holder_at_a_time(nodes: Nodes) -> None:
    async with nodes.redlock().hold(KEY, 30.0) as lease:
        with pytest.raises(LockTaken, match=KEY):
            async with nodes.redlock().hold(KEY, 30.0):
                pytest.fail("two holders")
        assert await nodes.tokens() == 3 * [lease.token.encode()]
        async with nodes.redlock().hold("test:thing:2", 30.0):
            pass


@pytest.mark.parametrize(
    ("count", "down", "held"),
    [(1, 0, True), (1, 1, False), (2, 1, False), (3, 1, True), (3, 2, False), (5, 2, True),
     (5, 3, False)],
)  # fmt: skip
async def test_more_than_half_of_the_nodes_must_agree(count: int, down: int, held: bool) -> None:
    async with nodes_of(count) as nodes:
        nodes.down(*range(down))
        locks = nodes.redlock()
        if held:
            await locks.check()
            async with locks.hold(KEY, 30.0) as lease:
                assert not lease.lost
        else:
            with pytest.raises(LocksUnavailable):
                await locks.check()
            with pytest.raises(LocksUnavailable):
                async with locks.hold(KEY, 30.0):
                    pytest.fail("held without a quorum")
        nodes.down()
        assert await nodes.tokens() == count * [None]


@pytest.mark.parametrize(
    ("tokens", "down", "error"),
    [
        (("other", "other", None), (), LockTaken),
        (("other", "other", "other"), (0,), LockTaken),
        (("other", "other", "other"), (0, 1), LocksUnavailable),
        # Nobody holds it yet: each of two rivals has one node, and the third does not answer.
        (("other", None, None), (2,), LockTaken),
    ],
)
async def test_taken_and_unavailable_are_told_apart(
    nodes: Nodes, tokens: tuple[str | None, ...], down: tuple[int, ...], error: type[Exception]
) -> None:
    await nodes.put(*tokens)
    nodes.down(*down)
    with pytest.raises(error):
        async with nodes.redlock().hold(KEY, 30.0):
            pytest.fail("held")
    nodes.down()
    # What the attempt had set is gone, and what others had set is not.
    left = [token.encode() if token else None for token in tokens]
    assert await nodes.tokens() == left


async def test_a_minority_of_old_keys_does_not_matter(nodes: Nodes) -> None:
    await nodes.put("old", None, None)
    async with nodes.redlock().hold(KEY, 30.0) as lease:
        assert await nodes.tokens() == [b"old", lease.token.encode(), lease.token.encode()]
    assert await nodes.tokens() == [b"old", None, None]


async def test_who_took_too_long_to_be_granted_the_lock_does_not_have_it(nodes: Nodes) -> None:
    clock = Clock()
    for seconds in (3.1, 3.3):
        slow = nodes.clients_of(Slow)
        for client in slow:
            client.clock, client.seconds = clock, seconds
        locks = Redlock(slow, clock=clock, drift_factor=0.05, node_timeout=DEADLINE_SECONDS)
        if seconds < 3.16:
            async with locks.hold(KEY, 10.0) as lease:
                assert lease.valid_until - clock() == pytest.approx(10 - 0.5 - 0.002 - 3 * seconds)
        else:
            with pytest.raises(LocksUnavailable):
                async with locks.hold(KEY, 10.0):
                    pytest.fail("held for no time at all")
        assert await nodes.tokens() == [None, None, None]


def hanging_second(nodes: Nodes) -> tuple[list[Redis], Hanging]:
    """Return clients of all nodes, and the second of them, which hangs."""
    hanging = nodes.clients_of(Hanging)[1]
    hanging.end = asyncio.Event()
    return [hanging if at == 1 else client for at, client in enumerate(nodes.clients())], hanging


async def test_a_node_that_hangs_costs_its_timeout(nodes: Nodes) -> None:
    clients, _ = hanging_second(nodes)
    locks = Redlock(clients, node_timeout=2.0)
    before = asyncio.get_running_loop().time()
    async with locks.hold(KEY, 30.0):
        taken = asyncio.get_running_loop().time() - before
    assert 2.0 <= taken < 60


async def test_a_crowd_in_this_process_is_not_taken_for_a_silent_node(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.redlock.TURN_SECONDS", 30.0)
    locks = nodes.redlock()

    async def hold(number: int) -> None:
        async with locks.hold(f"test:crowd:{number}", 60.0):
            pass

    await asyncio.gather(*(hold(number) for number in range(300)))


async def test_a_crowd_does_not_wait_for_a_node_that_hangs_one_after_the_other(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.redlock.TURN_SECONDS", 0.1)
    clients, hanging = hanging_second(nodes)
    locks = Redlock(clients, node_timeout=DEADLINE_SECONDS)
    for node in locks.nodes:
        if node.client is not hanging:
            # Nobody waits for a turn there, so that only the other node's turns can run out.
            monkeypatch.setattr(node, "_turns", asyncio.Semaphore(64))

    async def hold(number: int) -> None:
        async with locks.hold(f"test:crowd:{number}", 10 * DEADLINE_SECONDS):
            pass

    crowd = asyncio.as_completed([hold(number) for number in range(64)])
    for each in islice(crowd, 64 - TURNS):
        await each
    assert hanging.asked == TURNS, "whoever got no turn went without the node"
    hanging.end.set()
    for each in crowd:
        await each


async def test_waiting_gets_the_lock_when_it_is_released(nodes: Nodes) -> None:
    release = asyncio.Event()

    async def first() -> None:
        async with nodes.redlock().hold(KEY, 30.0):
            await release.wait()

    async def second() -> None:
        async with nodes.redlock().hold(KEY, 30.0, wait=10.0):
            pass

    holder = asyncio.create_task(first())
    await asyncio.sleep(0.05)
    waiter = asyncio.create_task(second())
    await asyncio.sleep(0.1)
    assert not waiter.done()
    release.set()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await holder
        await waiter


async def test_waiting_ends_and_pauses_are_random(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nodes.put("other", "other", "other")
    clock, pauses, chances = Clock(), [], iter([0.0, 1.0, 0.5, 0.25, 0.75])
    ours, really = asyncio.get_running_loop(), asyncio.sleep

    async def sleep(seconds: float) -> None:
        # Other threads of this process may have loops of their own, for other tests.
        if asyncio.get_running_loop() is not ours:
            return await really(seconds)
        pauses.append(seconds)
        clock.now += seconds
        return None

    locks = nodes.redlock(clock=clock, chance=lambda: next(chances), retry_delay=0.1)
    monkeypatch.setattr("infra.redlock.asyncio.sleep", sleep)
    with pytest.raises(LockTaken):
        async with locks.hold(KEY, 30.0, wait=0.42):
            pytest.fail("held")
    assert pauses == pytest.approx([0.05, 0.15, 0.1, 0.075, 0.045])


async def test_outcomes_are_counted(nodes: Nodes) -> None:
    def counted() -> list[float]:
        name = "backlot_lock_acquisitions_total"
        outcomes = ("acquired", "taken", "unavailable")
        return [
            *(metrics.value(name, lock="test:counted", outcome=what) for what in outcomes),
            metrics.value("backlot_lock_hold_seconds_count", lock="test:counted"),
            metrics.value("backlot_lock_node_failures_total", node="embedded"),
        ]

    async def attempt(ending: Awaitable[object] | None = None) -> None:
        async with nodes.redlock().hold("test:counted:7", 30.0):
            if ending is not None:
                await ending

    before = counted()
    await attempt()
    with pytest.raises(LockTaken):
        await attempt(attempt())
    nodes.down(0, 1)
    with pytest.raises(LocksUnavailable):
        await attempt()
    *outcomes, holds, failures = (now - then for now, then in zip(counted(), before, strict=True))
    assert outcomes == [2, 1, 1]
    assert holds == 2
    assert failures >= 2


def test_what_a_lock_is_for() -> None:
    assert kind_of("upload:finalize:0b8f") == "upload:finalize"
    assert kind_of("nightly") == "nightly"


def test_a_lock_needs_a_node() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Redlock([])


async def test_the_nodes_are_those_of_the_settings(nodes: Nodes) -> None:
    ordinary = make_redlock(nodes.clients()[0], ())
    async with ordinary.hold(KEY, 30.0) as lease:
        assert await nodes.tokens() == [lease.token.encode(), None, None]
    urls = [SecretStr(f"redis://127.0.0.1:{port}") for port in (1, 2, 3)]
    with pytest.raises(LocksUnavailable, match="of 3 lock nodes"):
        await make_redlock(nodes.clients()[0], urls).check()

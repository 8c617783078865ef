"""Keeping the lock: how long it is valid, how it is lost, and what is left in the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from commands.upload_queries import UploadFacts
from commands.uploads import HeldUpload, UploadFinalizing
from domain.upload import Status
from infra import metrics
from infra.redlock import Redlock
from tests.unit.lock_nodes import KEY, Clock, Gate, Nodes, nodes_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def losses() -> float:
    return metrics.value("backlot_lock_leases_lost_total", lock="test:thing")


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    async with nodes_of(3) as made:
        yield made


async def test_validity_is_what_is_left_of_the_time_less_the_drift(nodes: Nodes) -> None:
    clock = Clock()
    locks = nodes.redlock(clock=clock, drift_factor=0.05)
    async with locks.hold(KEY, 60.0) as lease:
        assert lease.valid_until == pytest.approx(1000.0 + 60.0 - 3.0 - 0.002)
        states = []
        for clock.now in (1056.9, 1057.0):
            states.append(lease.lost)
        assert states == [False, True]


async def test_extension_counts_from_now(nodes: Nodes) -> None:
    clock = Clock()
    async with nodes.redlock(clock=clock, drift_factor=0.0).hold(KEY, 30.0) as lease:
        clock.now += 20
        assert await lease.extend(60.0)
        assert lease.valid_until == pytest.approx(1020.0 + 60.0 - 0.002)
        assert all(59_000 < left <= 60_000 for left in await nodes.remaining())


async def test_a_slow_block_keeps_its_lock(nodes: Nodes) -> None:
    async with nodes.redlock().hold(KEY, 0.6) as lease:
        for _ in range(8):
            await asyncio.sleep(0.15)
            assert not lease.lost
            assert await nodes.tokens() == 3 * [lease.token.encode()]


async def test_a_lock_is_not_extended_forever(nodes: Nodes) -> None:
    async with nodes.redlock(longest=0.3).hold(KEY, 0.3) as lease:
        await asyncio.sleep(1.0)
        assert lease.lost
        assert await nodes.tokens() == [None, None, None]


async def test_a_minority_that_forgot_does_not_end_the_lease(nodes: Nodes) -> None:
    before = losses()
    async with nodes.redlock().hold(KEY, 30.0) as lease:
        await nodes.put(None, lease.token, lease.token)
        assert await lease.extend(30.0)
        nodes.down(1)
        assert not await lease.extend(30.0)
        assert not lease.lost
        nodes.down()
    assert losses() == before


async def test_whose_time_is_over_has_lost_it_even_when_nobody_took_it(nodes: Nodes) -> None:
    before, clock = losses(), Clock()
    async with nodes.redlock(clock=clock).hold(KEY, 30.0) as lease:
        clock.now += 30
        assert not await lease.extend(30.0)
        clock.now -= 30
        assert lease.lost
    assert losses() == before + 1
    async with nodes.redlock(clock=clock).hold(KEY, 30.0):
        clock.now += 30
    assert losses() == before + 2


@pytest.mark.parametrize("tokens", [("next", "next", None), (None, None, None)])
async def test_a_majority_that_refuses_ends_the_lease_at_once(
    nodes: Nodes, tokens: tuple[str | None, ...]
) -> None:
    before = losses()
    async with nodes.redlock().hold(KEY, 30.0) as lease:
        await nodes.put(*tokens)
        assert not await lease.extend(30.0)
        assert lease.lost
        assert not await lease.extend(30.0)
    # Only what was its own may be removed.
    assert await nodes.tokens() == [token.encode() if token else None for token in tokens]
    assert losses() == before + 1


async def test_the_lease_outlives_silence_until_its_time_is_over(nodes: Nodes) -> None:
    async with nodes.redlock().hold(KEY, 0.9) as lease:
        nodes.down(0, 1)
        assert not await lease.extend(0.9)
        assert not lease.lost
        await asyncio.sleep(0.3)
        nodes.down()
        # Extended again in the background as soon as the nodes answer.
        await asyncio.sleep(0.8)
        assert not lease.lost


async def test_silence_for_longer_ends_the_lease(nodes: Nodes) -> None:
    async with nodes.redlock().hold(KEY, 0.3) as lease:
        nodes.down(0, 1)
        await asyncio.sleep(0.4)
        assert lease.lost
    nodes.down()


async def test_a_key_that_vanished_under_its_holder_is_told_at_the_latest_in_the_end(
    nodes: Nodes,
) -> None:
    before = losses()
    async with nodes.redlock().hold(KEY, 30.0):
        await nodes.put(None, None, None)
    assert losses() == before + 1


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_the_lock_is_released_however_the_block_ends(
    nodes: Nodes, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        async with nodes.redlock().hold(KEY, 30.0):
            raise error
    assert await nodes.tokens() == [None, None, None]


def gated(nodes: Nodes, opened: asyncio.Event, asked: asyncio.Event) -> list[Gate]:
    gates = nodes.clients_of(Gate)
    for gate in gates:
        gate.opened, gate.asked = opened, asked
    return gates


async def test_who_is_cancelled_while_asking_leaves_nothing(nodes: Nodes) -> None:
    opened, asked = asyncio.Event(), asyncio.Event()
    gates = gated(nodes, opened, asked)

    async def hold() -> None:
        async with Redlock(gates, node_timeout=5.0).hold(KEY, 30.0):
            pytest.fail("cancelled before")

    task = asyncio.create_task(hold())
    await asked.wait()
    assert all(await nodes.tokens())
    task.cancel()
    asked.clear()
    await asked.wait()
    # Cancelled again while it cleans up.
    task.cancel()
    opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await nodes.tokens() == [None, None, None]


async def test_cancelling_again_and_again_does_not_stop_the_release(nodes: Nodes) -> None:
    opened, asked = asyncio.Event(), asyncio.Event()
    opened.set()
    gates = gated(nodes, opened, asked)
    held = asyncio.Event()

    async def hold() -> None:
        async with Redlock(gates, node_timeout=5.0).hold(KEY, 30.0):
            held.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(hold())
    await held.wait()
    opened.clear()
    for _ in range(5):
        task.cancel()
        await asyncio.sleep(0.01)
    assert not task.done()
    opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await nodes.tokens() == [None, None, None]


async def test_a_cancellation_during_the_release_is_not_forgotten(nodes: Nodes) -> None:
    opened, asked = asyncio.Event(), asyncio.Event()
    opened.set()
    gates = gated(nodes, opened, asked)

    async def hold() -> None:
        async with Redlock(gates, node_timeout=5.0).hold(KEY, 30.0):
            opened.clear()
            asked.clear()

    task = asyncio.create_task(hold())
    await asked.wait()
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0.01)
    opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await nodes.tokens() == [None, None, None]


async def test_nothing_runs_on_after_the_block(nodes: Nodes) -> None:
    before = asyncio.all_tasks()
    for _ in range(3):
        async with nodes.redlock().hold(KEY, 30.0):
            assert len(asyncio.all_tasks() - before) == 1
    assert asyncio.all_tasks() == before


async def test_a_lost_lock_on_an_upload_gives_way_and_is_counted(nodes: Nodes) -> None:
    clock, name = Clock(), "backlot_upload_locks_lost_total"
    async with nodes.redlock(clock=clock).hold(KEY, 60.0) as lease:
        held = HeldUpload(UploadFacts(uuid4(), Status.STARTED, "key", "id", 1, [1]), lease)
        held.require_lock()
        before = metrics.value(name)
        clock.now += 60
        with pytest.raises(UploadFinalizing):
            held.require_lock()
        assert metrics.value(name) == before + 1

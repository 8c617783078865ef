"""An answer leaves in one write, and nothing that was written is lost or reordered."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from infra.http.connections import FLUSH_BYTES, OneWrite


class Wire:
    """A transport that remembers what reached it."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed_after: int | None = None

    def write(self, data: bytes) -> None:
        assert self.closed_after is None
        self.sent.append(data)

    def close(self) -> None:
        self.closed_after = len(self.sent)

    def get_extra_info(self, name: str) -> str:
        return f"about {name}"


def one_write(wire: Wire) -> OneWrite:
    return OneWrite(cast(Any, wire), asyncio.get_running_loop())


async def settle() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def test_what_is_written_in_one_turn_leaves_together_and_in_order() -> None:
    async def scenario() -> list[bytes]:
        wire = Wire()
        transport = one_write(wire)
        transport.write(b"head ")
        transport.write(b"body")
        assert wire.sent == []
        await settle()
        transport.write(b"next")
        await settle()
        return wire.sent

    assert asyncio.run(scenario()) == [b"head body", b"next"]


def test_closing_sends_what_waits_first() -> None:
    async def scenario() -> Wire:
        wire = Wire()
        transport = one_write(wire)
        transport.write(b"last words")
        transport.close()
        await settle()
        return wire

    wire = asyncio.run(scenario())
    assert wire.sent == [b"last words"]
    assert wire.closed_after == 1


def test_a_large_body_is_not_held_back() -> None:
    async def scenario() -> list[int]:
        wire = Wire()
        transport = one_write(wire)
        for _ in range(5):
            transport.write(bytes(FLUSH_BYTES // 2 + 1))
        held = [len(data) for data in wire.sent]
        await settle()
        assert sum(len(data) for data in wire.sent) == 5 * (FLUSH_BYTES // 2 + 1)
        return held

    assert asyncio.run(scenario()) == [FLUSH_BYTES + 2] * 2


def test_all_else_is_the_transports_own() -> None:
    async def scenario() -> str:
        answer: str = one_write(Wire()).get_extra_info("peername")
        return answer

    assert asyncio.run(scenario()) == "about peername"

"""Connections whose clients dawdle or never come to an end, by a clock that the test moves."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from backlot.up import serving
from infra import metrics
from infra.http.app import AnswersByPath, Way
from infra.http.connections import ConnectionLimits, LeanProtocol, sweep

pytestmark = pytest.mark.anyio
LIMITS = ConnectionLimits(head_seconds=20, body_seconds=60, most=10)
BEGINNING = b"POST /things HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Transport(asyncio.Transport):
    """Where a client would be."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    @property
    def status(self) -> int:
        return int(self.sent.split(b" ", 2)[1])


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the whole body, and answers."""
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
    if message["type"] == "http.disconnect":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


class Server:
    """The connections of one server, without sockets."""

    def __init__(self, limits: ConnectionLimits = LIMITS) -> None:
        self.state = ServerState()
        self._limits = limits
        self._config = uvicorn.Config(answer, log_config=None, access_log=False)
        self._config.load()

    def connect(self) -> tuple[LeanProtocol, Transport]:
        transport = Transport()
        protocol = LeanProtocol(
            limits=self._limits, config=self._config, server_state=self.state, app_state={}
        )
        protocol.connection_made(transport)
        return protocol, transport

    def sweep(self, later: float) -> None:
        sweep(self.state.connections, asyncio.get_running_loop().time() + later)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def closed(reason: str) -> float:
    return metrics.value("backlot_connections_closed_total", reason=reason)


async def test_half_a_head_is_answered_with_408_after_its_time() -> None:
    server, before = Server(), closed("slow-head")
    silent, half = server.connect(), server.connect()
    half[0].data_received(BEGINNING)
    server.sweep(19)
    await settle()
    assert not silent[1].is_closing()
    assert not half[1].is_closing()
    server.sweep(21)
    await settle()
    assert silent[1].is_closing()
    # Who never said anything is not answered.
    assert silent[1].sent == b""
    assert half[1].is_closing()
    assert half[1].status == 408
    assert json.loads(half[1].sent.partition(b"\r\n\r\n")[2])["type"] == "request-timeout"
    assert closed("slow-head") == before + 2
    assert server.state.connections == set()


async def test_a_byte_now_and_then_does_not_keep_a_head_alive() -> None:
    server = Server()
    protocol, transport = server.connect()
    for letter in BEGINNING:
        protocol.data_received(bytes([letter]))
    server.sweep(21)
    await settle()
    assert transport.status == 408


async def test_a_body_has_to_come_at_a_rate() -> None:
    server = Server()
    slow, steady = server.connect(), server.connect()
    for protocol, _ in (slow, steady):
        protocol.data_received(BEGINNING + b"Content-Length: 100000\r\n\r\n")
    slow[0].data_received(b"x" * 500)
    steady[0].data_received(b"x" * 50_000)
    server.sweep(62)
    await settle()
    assert slow[1].is_closing()
    assert slow[1].status == 408
    # 50,000 bytes are good for 100 seconds more.
    server.sweep(150)
    assert not steady[1].is_closing()
    steady[0].data_received(b"x" * 50_000)
    await settle()
    assert steady[1].status == 200


async def test_who_waits_for_an_answer_or_rests_is_left_alone() -> None:
    server = Server()
    resting = server.connect()
    resting[0].data_received(BEGINNING + b"Content-Length: 0\r\n\r\n")
    await settle()
    assert resting[1].status == 200
    server.sweep(1_000)
    # That is what keep-alive is limited by.
    assert not resting[1].is_closing()
    resting[0]._unset_keepalive_if_required()


def test_who_comes_last_to_close_a_connection_that_rests_is_the_server() -> None:
    # Otherwise a request that crosses the end gets no answer. nginx and the load balancers of
    # clouds keep connections for 60 seconds, httpx for 5.
    assert serving(FastAPI()).timeout_keep_alive > 60


@pytest.mark.parametrize(
    ("piece", "status"),
    [(b"x" * 10_000, 414), (b"X-Long: ", 431)],
    ids=["a path without an end", "headers without an end"],
)
async def test_a_head_without_an_end_is_cut_off(piece: bytes, status: int) -> None:
    protocol, transport = Server().connect()
    protocol.data_received(b"GET /" if status == 414 else BEGINNING + b"X-Some: more\r\n")
    filler = piece if status == 414 else piece + b"x" * 10_000 + b"\r\n"
    taken = 0
    while not transport.is_closing():
        protocol.data_received(filler)
        taken += len(filler)
        await settle()
        assert taken < 200_000
    assert transport.status == status


async def test_more_connections_than_there_may_be_push_out_the_oldest_that_wait() -> None:
    server, before = Server(), closed("crowded")
    half_open = [server.connect() for _ in range(10)]
    for protocol, _ in half_open:
        protocol.data_received(BEGINNING)
    busy = half_open[0]
    busy[0].data_received(b"Content-Length: 5\r\n\r\nxx")
    for place, (protocol, _) in enumerate(half_open):
        protocol.since += place
    later = []
    for number in range(30):
        protocol, transport = server.connect()
        later.append(transport)
        protocol.data_received(BEGINNING)
        protocol.since += 100 + number
        await settle()
        assert len(server.state.connections) <= 10
    assert [transport.is_closing() for transport in later] == [True] * 21 + [False] * 9
    # An honest client is served in the midst of it, and whose body is coming stays.
    honest, transport = server.connect()
    honest.data_received(BEGINNING + b"Content-Length: 0\r\n\r\n")
    await settle()
    assert transport.status == 200
    assert not busy[1].is_closing()
    busy[0].data_received(b"xxx")
    await settle()
    assert busy[1].status == 200
    assert closed("crowded") >= before + 30
    for protocol, _ in (busy, (honest, transport)):
        protocol._unset_keepalive_if_required()


async def test_where_all_are_busy_the_newest_is_told_to_come_back() -> None:
    server = Server()
    for _ in range(10):
        protocol, _ = server.connect()
        protocol.data_received(BEGINNING + b"Content-Length: 5\r\n\r\nxx")
    _, newest = server.connect()
    await settle()
    assert newest.is_closing()
    assert newest.status == 503


def test_paths_that_are_asked_for_once_fill_no_memory() -> None:
    async def nothing(scope: Any, receive: Any, send: Any) -> None: ...

    answers = AnswersByPath(most_bytes=1024 * 1024)
    for number in range(10_000):
        path = f"/videos/{number:032x}/like" + "-" * 1_000
        answers.put("GET", path, Way(nothing, "read"))
        assert answers.get("GET", path) == Way(nothing, "read")
        assert answers.bytes <= 1024 * 1024
    assert answers.get("GET", "/videos/" + "0" * 32 + "/like" + "-" * 1_000) is None

"""Calls to servers that somebody else named: pinned to checked addresses, and bounded."""

from __future__ import annotations

import asyncio
import socket
import ssl
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

import infra.http.outbound
from infra.http.outbound import AddressRefused, NoAnswer, Outbound
from infra.http.outbound_rules import OutboundRules
from tests.certificates import Authority
from tests.integration.consuming_support import run
from tests.integration.webhook_support import receiving

HERE = OutboundRules(allow_http=True, networks=(ip_network("127.0.0.0/8"),))
HEADERS = {"webhook-id": "1", "webhook-timestamp": "1"}


class Names:
    """A resolver: which addresses a name has, and how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
        self.addresses, self.asked = list(addresses), 0
        monkeypatch.setattr(infra.http.outbound, "_look_up", self.look_up)

    def look_up(self, host: str, port: int) -> list[Any]:
        self.asked += 1
        kind = socket.AF_INET
        return [(kind, socket.SOCK_STREAM, 0, "", (each, port)) for each in self.addresses]


def outbound(rules: OutboundRules = HERE, **options: Any) -> Outbound:
    return Outbound(rules, **{"seconds": 30.0, **options})


@pytest.mark.parametrize(
    "addresses", [("8.8.8.8", "10.0.0.1"), ("10.0.0.1", "8.8.8.8"), ("::ffff:127.0.0.1",)]
)
def test_a_name_with_one_address_within_is_not_called_at_all(
    monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...]
) -> None:
    Names(monkeypatch, *addresses)
    called: list[str] = []

    async def connect_tcp(_: object, host: str, *rest: object) -> None:
        called.append(host)

    monkeypatch.setattr("httpcore.AnyIOBackend.connect_tcp", connect_tcp)

    async def scenario() -> None:
        calls = outbound(OutboundRules(allow_http=True))
        with pytest.raises(AddressRefused):
            await calls.post("http://hooks.example/", HEADERS, b"")
        await calls.aclose()

    run(scenario)
    assert called == []


def test_a_name_is_resolved_once_for_a_connection_and_another_address_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = Names(monkeypatch, "127.0.0.9", "127.0.0.1")
    # No proxy of the environment gets it.
    for variable in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")

    async def scenario() -> None:
        async with receiving(lambda _: (302, {"location": "http://127.0.0.1:1/"})) as receiver:
            calls, url = outbound(), f"http://hooks.example:{receiver.port}/x?y=z"
            for _ in range(3):
                assert (await calls.post(url, HEADERS, b"{}")).status == 302
            await calls.aclose()
        assert names.asked == 1
        assert {each.headers["host"] for each in receiver.all} == {f"hooks.example:{receiver.port}"}
        assert [each.body for each in receiver.all] == [b"{}"] * 3

    run(scenario)


def test_the_certificate_has_to_be_of_the_name_not_of_the_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Names(monkeypatch, "127.0.0.1")
    authority = Authority(tmp_path)
    identity = authority.identity("hooks.example")
    trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trust.load_cert_chain(identity.certificate, identity.key)
    shown: list[str | None] = []
    trust.sni_callback = lambda _, name, __: shown.append(name)

    async def scenario() -> None:
        async with receiving(trust=trust) as receiver:
            calls = outbound(ca_file=authority.file)
            url = f"https://hooks.example:{receiver.port}/"
            assert (await calls.post(url, HEADERS, b"")).status == 204
            with pytest.raises(NoAnswer, match="certificate"):
                await calls.post(f"https://other.example:{receiver.port}/", HEADERS, b"")
            await calls.aclose()
            strangers = outbound()
            with pytest.raises(NoAnswer, match="certificate"):
                await strangers.post(url, HEADERS, b"")
            await strangers.aclose()
        assert shown == ["hooks.example", "other.example", "hooks.example"]

    run(scenario)


def test_of_an_answer_no_more_is_read_than_is_short() -> None:
    sent: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nretry-after: 7\r\ncontent-length: 1000000000\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 65_536)
                sent.append(65_536)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        calls, port = outbound(), server.sockets[0].getsockname()[1]
        answer = await calls.post(f"http://127.0.0.1:{port}/", HEADERS, b"")
        assert (answer.status, answer.retry_after) == (200, 7.0)
        await calls.aclose()
        server.close()
        # What the buffers of the two ends hold.
        assert sum(sent) < 50_000_000

    run(scenario)


def test_who_does_not_answer_is_given_up() -> None:
    async def scenario() -> None:
        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(hang, "127.0.0.1", 0)
        calls, port = outbound(seconds=0.2), server.sockets[0].getsockname()[1]
        with pytest.raises(NoAnswer, match=r"Timeout|no answer"):
            await calls.post(f"http://127.0.0.1:{port}/", HEADERS, b"")
        server.close()
        await server.wait_closed()
        with pytest.raises(NoAnswer):
            await calls.post(f"http://127.0.0.1:{port}/", HEADERS, b"")
        await calls.aclose()

    run(scenario)


def test_what_speaks_no_http_is_no_answer() -> None:
    async def scenario() -> None:
        async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(babble, "127.0.0.1", 0)
        calls, port = outbound(), server.sockets[0].getsockname()[1]
        with pytest.raises(NoAnswer):
            await calls.post(f"http://127.0.0.1:{port}/", HEADERS, b"")
        await calls.aclose()
        server.close()

    run(scenario)

"""What tests of webhooks share: a receiver that checks signatures as receivers do, and a sender."""

from __future__ import annotations

import asyncio
import base64
import hmac
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any
from uuid import UUID, uuid4

import orjson
import psycopg

from commands.webhooks import AddNewWebhook, WebhookAsked
from engine.command_bus import CommandBus, Executed
from engine.event_store import GroupCommitRecorder, open_recorder
from engine.installation import make_tables
from engine.persons import Persons
from engine.projection import ReadModels
from engine.subscription import Notifications
from infra.settings.features import WebhookSettings
from infra.standard_webhooks import derive_secret
from projections.webhooks import TABLES
from readapi.webhooks import load_webhooks
from tests.integration.buses import execute, open_bus
from tests.integration.event_log import rows
from tests.integration.person_support import KEK
from tests.support import ended, until
from workers.webhooks import lookups, subscribe_webhooks

LOOPBACK = (ip_network("127.0.0.0/8"),)
# What fails is soon tried again, and then rests until somebody enables the webhook.
PAUSES = (0.01, 0.01, 600.0, 600.0)


@dataclass
class Received:
    """One delivery as it came."""

    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        return dict(orjson.loads(self.body))

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def key(self) -> str:
        return str(self.event["partitionkey"])

    @property
    def position(self) -> int:
        return int(self.event["position"])

    def signed_by(self, secret: bytes) -> bool:
        """As the specification says that receivers check it."""
        signed = f"{self.id}.{self.headers['webhook-timestamp']}.".encode() + self.body
        digest = base64.b64encode(hmac.digest(secret, signed, "sha256")).decode()
        return f"v1,{digest}" in self.headers["webhook-signature"].split(" ")


Answer = Callable[[Received], tuple[int, dict[str, str]]]


def take_all(_: Received) -> tuple[int, dict[str, str]]:
    return 204, {}


@dataclass
class Receiver:
    """A server that keeps what comes, and answers as it is told to."""

    port: int
    answer: Answer = take_all
    all: list[Received] = field(default_factory=list)
    taken: list[Received] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def ids(self) -> list[str]:
        return [each.id for each in self.taken]

    def by_key(self) -> dict[str, list[int]]:
        """The positions of what was taken by key, each where it came first."""
        found: dict[str, list[int]] = {}
        for each in self.taken:
            known = found.setdefault(each.key, [])
            if each.position not in known:
                known.append(each.position)
        return found

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (head := await reader.readuntil(b"\r\n\r\n")).strip():
                lines = head.decode().split("\r\n")[1:]
                pairs = (line.partition(": ") for line in lines if line)
                headers = {name.lower(): value for name, _, value in pairs}
                received = Received(
                    headers, await reader.readexactly(int(headers["content-length"]))
                )
                self.all.append(received)
                status, told = self.answer(received)
                if status < 300:
                    self.taken.append(received)
                more = "".join(f"{name}: {value}\r\n" for name, value in told.items())
                writer.write(f"HTTP/1.1 {status} Told\r\ncontent-length: 0\r\n{more}\r\n".encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def receiving(
    answer: Answer = take_all, port: int = 0, trust: ssl.SSLContext | None = None
) -> AsyncIterator[Receiver]:
    receiver = Receiver(port, answer)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", port, ssl=trust)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()


@contextmanager
def webhook_tables(database_url: str) -> Iterator[Persons]:
    """The tables of webhooks, and who has the key of their secrets."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        make_tables(conn, TABLES)
    persons = Persons(database_url, KEK)
    try:
        persons.open()
        yield persons
    finally:
        persons.close()


def sending_settings(**options: Any) -> WebhookSettings:
    given = {"allow_http": True, "allowed_networks": LOOPBACK, "retry_seconds": PAUSES, **options}
    aliases = {name: f.alias or name for name, f in WebhookSettings.model_fields.items()}
    return WebhookSettings(**{aliases[name]: value for name, value in given.items()})


@dataclass
class Desk:
    """An operator of webhooks on a database, with a sender beside."""

    database_url: str
    recorder: GroupCommitRecorder
    persons: Persons
    bus: CommandBus

    async def add(self, url: str, *topics: str, after: tuple[int, int] | None = (0, 0)) -> UUID:
        command = AddNewWebhook(uuid4(), uuid4(), url, frozenset(topics), after)
        done = await self.do(command)
        assert isinstance(done, WebhookAsked)
        return done.webhook_id

    async def do(self, command: Any) -> Any:
        outcome = await execute(self.bus, command, "olga")
        assert isinstance(outcome, Executed)
        return outcome.answer

    def secrets(self, webhook_id: UUID) -> list[bytes]:
        webhook = load_webhooks(self.recorder).get(webhook_id)
        key = self.persons.webhook_key()
        return [derive_secret(key, each.id) for each in webhook.secrets]

    def is_enabled(self, webhook_id: UUID) -> bool:
        return load_webhooks(self.recorder).get(webhook_id).disabled is None

    def deliveries(self, status: str) -> list[tuple[int, str, int, int | None]]:
        """Those of one status: number, topic, attempts and the latest answer, the oldest first."""
        query = (
            "SELECT delivery_id, topic, attempts, answer FROM webhooks.deliveries "
            "WHERE status = %s ORDER BY delivery_id"
        )
        return [
            (row[0], row[1], row[2], row[3]) for row in rows(self.database_url, query, [status])
        ]

    async def until_taken(self, receiver: Receiver, ids: Collection[str]) -> None:
        await until(lambda: set(receiver.ids) >= set(ids))


@asynccontextmanager
async def sending(database_url: str, persons: Persons, **options: Any) -> AsyncIterator[Desk]:
    """A process that sends; it ends as by a cancellation."""
    recorder = open_recorder(database_url)
    try:
        async with open_bus(recorder, readers=lookups(ReadModels(()))) as bus:
            notifications = Notifications(database_url)
            wake = notifications.subscribe()
            given = database_url, sending_settings(**options), persons, bus, wake
            subscription = subscribe_webhooks(*given)
            tasks = [asyncio.create_task(w) for w in (notifications.run(), subscription.run())]
            try:
                yield Desk(database_url, recorder, persons, bus)
            finally:
                await ended(*tasks)
    finally:
        recorder.close()


async def _run(database_url: str, kek: str) -> None:
    from infra.key_encryption import GivenKey

    persons = Persons(database_url, GivenKey(kek))
    async with sending(database_url, persons, retry_seconds=(0.01,) * 30):
        sys.stderr.write("ready\n")
        sys.stderr.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    # A process of its own, to be killed.
    asyncio.run(_run(*sys.argv[1:]))

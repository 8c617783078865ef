"""Several programs on one PostgreSQL, one Redis and one object folder, as replicas have them."""

from __future__ import annotations

import asyncio
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from backlot.demo.client import Lanes
from infra.data_folder import FORMAT, FORMAT_FILE, objects_path, secret_path
from infra.http.auth import mint_token
from tests.e2e.program import Program
from tests.support import DEADLINE_SECONDS, eventually, unused_port

SECRET = "shared by all replicas of a test"


@dataclass
class Replica(Program):
    """A program whose database is not its own; `events_url` is where that is."""

    events_url: str = ""

    @property
    def database_url(self) -> str:
        return self.events_url

    def token(self, user: str, *, admin: bool = False, roles: Sequence[str] = ()) -> str:
        return mint_token(SECRET, user, ["admin"] if admin else roles)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def is_paused(self) -> bool:
        return bool(psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED)


@dataclass
class Site:
    """The replicas; the first has every role, and receives parts."""

    replicas: list[Replica] = field(default_factory=list)

    @property
    def first(self) -> Replica:
        return self.replicas[0]

    def everywhere(self, name: str, text: str) -> None:
        """Put a file into every replica's working folder; an empty text removes it."""
        for replica in self.replicas:
            file = replica.home / name
            if text:
                file.write_text(text)
            else:
                file.unlink(missing_ok=True)

    def asked(self, upload_id: str) -> list[str]:
        """What the store was asked about this upload by commands: "list", "complete"."""
        files = (replica.home / "asked" for replica in self.replicas)
        told = [line for file in files if file.exists() for line in file.read_text().splitlines()]
        return [line.split()[0] for line in told if line.endswith(f" videos/{upload_id}")]

    def at_once(
        self, asks: Sequence[tuple[str, str]], user: str = "owner", **headers: str
    ) -> list[httpx.Response]:
        """Send (method, path) pairs at the same time, the replicas taking turns."""
        return asyncio.run(self._at_once(asks, {**headers, **self._authorized(user)}))

    async def _at_once(
        self, asks: Sequence[tuple[str, str]], headers: dict[str, str]
    ) -> list[httpx.Response]:
        async with httpx.AsyncClient(
            transport=Lanes(len(asks)), timeout=60, headers=headers
        ) as client:
            return await asyncio.gather(
                *(
                    client.request(method, self.replicas[n % len(self.replicas)].url + path)
                    for n, (method, path) in enumerate(asks)
                )
            )

    def _authorized(self, user: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.first.token(user)}"}


@contextmanager
def running_site(
    folder: Path, count: int, database_url: str, module: str, variables: dict[str, str]
) -> Iterator[Site]:
    """So many running replicas; whatever became of them, none is left behind."""
    site = Site()
    common = {"DATABASE_URL": database_url, "JWT_SECRET": SECRET, **variables}
    try:
        for number in range(count):
            roles = {"BACKLOT_ROLES": "commands,queries"} if number else {}
            home = folder / f"replica-{number}"
            replica = Replica(home, unused_port(), {**common, **roles}, module)
            replica.events_url = database_url
            if number:
                _share_objects(site.first.data, replica.data)
            site.replicas.append(replica.start())
        yield site
    finally:
        for replica in site.replicas:
            if replica.process.poll() is None:
                replica.resume()
            replica.clean_up()


def _share_objects(ours: Path, theirs: Path) -> None:
    theirs.mkdir(parents=True)
    (theirs / FORMAT_FILE).write_text(f"{FORMAT}\n")
    shutil.copy(secret_path(ours), secret_path(theirs))
    objects_path(theirs).symlink_to(objects_path(ours))


class Asked:
    """A request in a thread of its own, because it will hang for a while."""

    def __init__(self, client: httpx.Client, method: str, path: str) -> None:
        self._answer: httpx.Response | None = None
        self._thread = threading.Thread(target=self._ask, args=(client, method, path))
        self._thread.start()

    def _ask(self, client: httpx.Client, method: str, path: str) -> None:
        self._answer = client.request(method, path)

    def answer(self) -> httpx.Response:
        self._thread.join(DEADLINE_SECONDS)
        assert self._answer is not None, "no answer came"
        return self._answer


def paused_at(step: str, replica: Replica, path: str, user: str = "owner") -> Asked:
    """A completion of which the whole process stands still at this step."""
    (replica.home / "halt").write_text(f"{step} SIGSTOP")
    asked = Asked(replica.client(user), "POST", f"{path}/complete")
    eventually(replica.is_paused)
    return asked

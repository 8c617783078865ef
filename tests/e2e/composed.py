"""The services of docker-compose.yml as processes of this machine: its commands, its variables.

Only addresses differ: where a container has the name of a server, a process has a port of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import redis

from infra.http.auth import mint_token
from tests.composition import PROJECT, Composition, Service, read_composition, seconds
from tests.e2e import plain
from tests.e2e.program import OWN_VARIABLES, NotStarted
from tests.fork_server import ForkedProcess
from tests.integration.s3_server import s3_server
from tests.nginx import Proxy, running_nginx
from tests.support import DEADLINE_SECONDS, eventually, requires, unused_port
from tests.two_users import TwoUsers, two_users

START_SECONDS = 180.0


@dataclass
class RoleProcess:
    """One service of this program; what it prints is kept over restarts."""

    service: Service
    home: Path
    variables: Mapping[str, str]
    port: int = field(default_factory=unused_port)
    admin_port: int = field(default_factory=unused_port)
    _process: ForkedProcess | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        """Where what is for operators is served, on a port that nobody passes on."""
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def logs(self) -> str:
        return (self.home / "log").read_text(errors="replace")

    @property
    def process(self) -> ForkedProcess:
        assert self._process is not None, "not started"
        return self._process

    def launch(self) -> None:
        """Run the command of the service; a group of processes, as a container is."""
        program, *arguments = self.service.words
        self.home.mkdir(parents=True, exist_ok=True)
        log = self.home / "log"
        self._process = ForkedProcess(
            program,
            arguments,
            cwd=self.home,
            env=self._environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def _environment(self) -> dict[str, str]:
        foreign = {name: text for name, text in os.environ.items() if name not in OWN_VARIABLES}
        own = {
            "BACKLOT_HOST": "127.0.0.1",
            "BACKLOT_PORT": str(self.port),
            "ADMIN_PORT": str(self.admin_port),
            "BACKLOT_DATA_DIR": str(self.home / "data"),
            "PYTHONPATH": str(PROJECT),
        }
        mine = self.service.environment
        # Who has no key of the store in the composition has none here.
        given = {
            name: text
            for name, text in self.variables.items()
            if name in mine or not name.startswith("S3_")
        }
        return {**foreign, **mine, **given, **own}

    def is_healthy(self) -> bool:
        """What the service's health check asks. Raises NotStarted when the process has ended."""
        if self.process.poll() is not None:
            raise NotStarted(f"{self.service.name} ended:\n{self.logs}")
        (path,) = re.findall(r"http://127\.0\.0\.1:\d+(/\w+)", self.service.health)
        with suppress(httpx.TransportError):
            return plain.get(f"http://{self.address}{path}").is_success
        return False

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command of the program there, as `docker compose exec` runs it."""
        out, err = self.home / "run-out", self.home / "run-err"
        for path in (out, err):
            path.write_bytes(b"")
        process = ForkedProcess(
            "backlot",
            arguments,
            cwd=self.home,
            env=self._environment(),
            stdout=out,
            stderr=err,
        )
        try:
            code = process.wait(2 * DEADLINE_SECONDS)
        finally:
            process.kill()
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())

    def kill(self) -> None:
        """End all its processes at once, without a warning."""
        self.process.kill_session()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to end within the grace that the service gives; returns its exit code."""
        self.process.terminate()
        return self.process.wait(seconds(self.service.given["stop_grace_period"]))

    def clean_up(self) -> None:
        """Leave nothing behind, whatever a test did; what it forked too."""
        if self._process is not None:
            self._process.kill_session()
            self._process.wait()


@dataclass
class Composed:
    """The running system behind its proxy."""

    proxy: Proxy
    processes: Mapping[str, RoleProcess]
    secret: str
    redis_url: str
    _open: ExitStack

    @property
    def base_url(self) -> str:
        """Where clients reach the API."""
        return self.proxy.url

    def client(self, user: str | None = None) -> httpx.Client:
        """Calls through the proxy as `user`, or as nobody; closed with the system."""
        return self._client(self.base_url, mint_token(self.secret, user) if user else "")

    def operator(self, role: str) -> httpx.Client:
        """Calls the process of a role at its port for operators; closed with the system."""
        token = mint_token(self.secret, "olga", ["admin"])
        return self._client(self.processes[role].admin_url, token)

    def _client(self, base_url: str, token: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return self._open.enter_context(plain.client(base_url=base_url, headers=headers))

    def start(self, *roles: str) -> None:
        """Start these together; returns once each is healthy."""
        for role in roles:
            self.processes[role].launch()
        for role in roles:
            eventually(self.processes[role].is_healthy, START_SECONDS)

    def kill(self, role: str) -> None:
        self.processes[role].kill()

    def stop(self, role: str) -> int:
        return self.processes[role].stop()

    def logs(self, role: str) -> str:
        return self.processes[role].logs


@contextmanager
def composed(
    folder: Path,
    database_url: str,
    roles: tuple[str, ...],
    *,
    kafka: str = "",
    variables: Mapping[str, str] | None = None,
) -> Iterator[Composed]:
    """The services of these roles and what they need, all healthy, on an empty database.

    `kafka` is host:port of a broker; without one consumers follow the event log. `variables` are
    more settings for all of them, as `backlot.env` holds them.
    """
    with ExitStack() as stack:
        composition = read_composition()
        redis_port = stack.enter_context(_running_redis(composition, folder / "redis"))
        addresses = {"redis:6379": f"127.0.0.1:{redis_port}", "kafka:9092": kafka}
        services = {role: _local(composition.roles[role], addresses) for role in roles}
        s3 = stack.enter_context(s3_server())
        users = stack.enter_context(two_users(database_url))
        _migrate(composition.services["migrations"], folder / "migrations", users)
        own = {"DATABASE_URL": users.user_url, **s3.settings(), **(variables or {})}
        processes = {
            role: RoleProcess(service, folder / role, own) for role, service in services.items()
        }
        away = f"127.0.0.1:{unused_port()}"
        upstreams = {
            side: processes[side].address if side in processes else away
            for side in ("commands", "queries", "web")
        }
        if "web" in processes:
            upstreams["console"] = processes["web"].admin_url.removeprefix("http://")
            near = (
                address
                for role in ("queries", "commands")
                for address in (f"http://{processes[role].address}", processes[role].admin_url)
            )
            processes["web"].variables = {**own, "WEB_API_URLS": ",".join(near)}
        upstreams["objects"] = s3.url.removeprefix("http://")
        proxy = stack.enter_context(running_nginx(folder / "proxy", upstreams))
        own["S3_PUBLIC_ENDPOINT_URL"] = proxy.media_url
        first = next(iter(services.values())).environment
        system = Composed(proxy, processes, first["JWT_SECRET"], first["REDIS_URL"], stack)
        for process in processes.values():
            stack.callback(process.clean_up)
        system.start(*roles)
        yield system


def _migrate(service: Service, home: Path, users: TwoUsers) -> None:
    """What the service `migrations` does, with the only URL of the owner."""
    home.mkdir(parents=True)
    assert service.words == ["backlot", "migrate"]
    ran = RoleProcess(service, home, users.settings()).run("migrate")
    assert ran.returncode == 0, ran.stderr


def _local(service: Service, addresses: Mapping[str, str]) -> Service:
    """The service with the names of servers replaced by where they are here."""
    environment = service.environment
    for far, near in addresses.items():
        environment = {name: text.replace(far, near) for name, text in environment.items()}
    return Service(service.name, {**service.given, "environment": environment})


@contextmanager
def _running_redis(composition: Composition, folder: Path) -> Iterator[int]:
    """The Redis of the composition, with its own arguments; yields its port."""
    service = composition.services["redis"]
    program, *arguments = service.words[-len(service.given["command"]) :]
    folder.mkdir(parents=True)
    port = unused_port()
    place = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    command = [requires(program), *arguments, *place]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port, password=service.environment["REDISCLI_AUTH"]) as client:
            _await_redis(client, process)
        yield port
    finally:
        process.kill()
        process.wait()


def _await_redis(client: redis.Redis, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(redis.ConnectionError):
            assert client.info("server")["process_id"] == process.pid, "a port of another program"
            return
        time.sleep(0.02)
    raise NotStarted("redis-server ended, or does not answer")

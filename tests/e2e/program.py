"""The real program as a process of its own, on a folder and a port that nobody else has."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import ClassVar, Self

import httpx
import psutil

from backlot.database import key_encryption
from backlot.installation import prepare_database
from engine.persons import Persons
from infra.data_folder import LOCK_FILE, DataFolder, cluster_path, secret_path
from infra.http.auth import mint_token
from infra.postgres.server import EmbeddedPostgres, running_url
from infra.settings import Settings, load_settings
from tests.e2e import plain
from tests.fork_server import ForkedProcess
from tests.support import DEADLINE_SECONDS, KEY_ENCRYPTION_KEY, PROJECT

Process = ForkedProcess | subprocess.Popen[bytes]
OWN_VARIABLES = Settings.variables() | Settings.files().keys()


class NotStarted(Exception):
    """The program ended, or was not ready in time."""


@dataclass
class Program:
    """`backlot up` on `home/data`; `home` also keeps what the program prints."""

    # A data folder to begin with, for all processes of a run; without one each program makes its
    # own, as everybody's does.
    template: ClassVar[Path | None] = None

    home: Path
    port: int
    variables: dict[str, str] = field(default_factory=dict)
    module: str = "backlot"
    _process: Process | None = None
    _runs: Iterator[int] = field(default_factory=count)
    _open: ExitStack = field(default_factory=ExitStack)
    _persons: Persons | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def process(self) -> Process:
        assert self._process is not None, "not launched"
        return self._process

    @property
    def said(self) -> str:
        """Its standard output since the last launch."""
        return (self.home / "out").read_text()

    @property
    def complained(self) -> str:
        """Its standard error since the last launch."""
        return (self.home / "err").read_text(errors="replace")

    @property
    def database_url(self) -> str:
        found = running_url(cluster_path(self.data))
        assert found is not None, "PostgreSQL does not run"
        return found

    @property
    def postmaster(self) -> psutil.Process:
        """The PostgreSQL server that works in the data folder."""
        lines = (cluster_path(self.data) / "postmaster.pid").read_text().splitlines()
        found = psutil.Process(int(lines[0]))
        assert found.cwd() == str(cluster_path(self.data)), "a pid that was reused"
        return found

    def launch(self, *arguments: str) -> Self:
        """Run the program without waiting for anything; `up` unless told otherwise."""
        # Their connections are to a database that may have ended with the program before.
        self._leave_persons()
        self.home.mkdir(parents=True, exist_ok=True)
        self._process = self._begin(self.module, arguments or ("up",), {}, "out", "err")
        return self

    def _begin(
        self, module: str, arguments: Sequence[str], variables: dict[str, str], *files: str
    ) -> Process:
        """A process of this release, or of another one whose source the variables name."""
        environment = {**self.environment(), **variables}
        out, err = (self.home / name for name in files)
        for path in (out, err):
            path.write_bytes(b"")
        if environment["PYTHONPATH"] == str(PROJECT):
            return ForkedProcess(
                module, arguments, cwd=self.home, env=environment, stdout=out, stderr=err
            )
        with out.open("wb") as written, err.open("wb") as complained:
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=self.home,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=complained,
            )

    def start(self) -> Self:
        """Launch, and return once it says that it is ready.

        A new folder gets a copy of a cluster without events, as a launch would make it there.
        """
        elsewhere = {"DATABASE_URL", "BACKLOT_DATA_DIR"} & set(self.variables)
        if self.template is not None and not elsewhere and not self.data.exists():
            copy_data(self.template, self.data)
        self.launch()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while f"ready: {self.url}\n" not in self.said:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise NotStarted(self.complained)
            time.sleep(0.02)
        return self

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Another command of the program, with the same settings and some more variables."""
        files = [f"run-{next(self._runs)}-{name}" for name in ("out", "err")]
        process = self._begin("backlot", arguments, variables, *files)
        try:
            code = process.wait(2 * DEADLINE_SECONDS)
        finally:
            process.kill()
        out, err = ((self.home / name).read_text() for name in files)
        return subprocess.CompletedProcess(arguments, code, out, err)

    def environment(self) -> dict[str, str]:
        """The settings of this program, and nothing of who runs the tests."""
        foreign = {name: text for name, text in os.environ.items() if name not in OWN_VARIABLES}
        own = {
            "BACKLOT_PORT": str(self.port),
            "BACKLOT_DATA_DIR": str(self.data),
            "LOG_FORMAT": "json",
            # By cores, all programs of a run would be several; what several do has its own tests.
            "BACKLOT_PROCESSES": "1",
            # Tests of other things ask faster than any person.
            "RATE_LIMITS": "off",
            # The source beside these tests, whichever copy of it is installed.
            "PYTHONPATH": str(PROJECT),
        }
        if "DATABASE_URL" in self.variables:
            own["KEY_ENCRYPTION_KEY"] = KEY_ENCRYPTION_KEY
        return {**foreign, **own, **self.variables}

    def token(self, user: str, *, admin: bool = False, roles: Sequence[str] = ()) -> str:
        secret = secret_path(self.data).read_text().strip()
        return mint_token(secret, user, ["admin"] if admin else roles)

    def client(
        self, user: str | None = None, *, admin: bool = False, roles: Sequence[str] = ()
    ) -> httpx.Client:
        """Calls this program as `user`, or as nobody; closed with the program."""
        token = self.token(user, admin=admin, roles=roles) if user else None
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return self._open.enter_context(plain.client(base_url=self.url, headers=headers))

    def persons(self) -> Persons:
        """Who is who in this program's database, asked past the program; closed with it."""
        if self._persons is None:
            settings = load_settings(self.environment())
            url = settings.database.url
            whole = self.database_url if url is None else url.get_secret_value()
            self._persons = Persons(whole, key_encryption(settings))
            self._open.callback(self._leave_persons)
        return self._persons

    def _leave_persons(self) -> None:
        persons, self._persons = self._persons, None
        if persons is not None:
            persons.close()

    def person(self, user: str) -> str:
        """The pseudonym of a user who was here."""
        found = self.persons().find(user)
        assert found is not None, f"{user} was never here"
        return found

    def kill(self) -> None:
        """As a power cut would end it: no warning, no cleaning up."""
        self.process.kill()
        self.process.wait()

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self.process.wait(DEADLINE_SECONDS)

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> int:
        """End it in order; returns its exit code."""
        self._open.close()
        self.process.send_signal(sign)
        return self.wait()

    def clean_up(self) -> None:
        """Leave no process and no file behind, whatever a test did."""
        self._open.close()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.kill()
        for process in self.servers():
            process.kill()
        shutil.rmtree(self.home, ignore_errors=True)

    def servers(self) -> list[psutil.Process]:
        """Every PostgreSQL process that works in the data folder."""
        cluster, found = str(cluster_path(self.data)), []
        for process in psutil.process_iter(["name"]):
            try:
                if process.info["name"] == "postgres" and process.cwd() == cluster:
                    found.append(process)
            except psutil.Error:
                continue
        return found


def copy_data(template: Path, folder: Path) -> None:
    """Make a data folder whose cluster has all tables; who comes first makes the template."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with template.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if template.exists():
            _copy(template, folder)
        else:
            _make_data(folder)
            draft = template.with_suffix(".draft")
            _copy(folder, draft)
            draft.rename(template)


def _make_data(folder: Path) -> None:
    fast = {"fsync": "off"}
    with DataFolder(folder) as data, EmbeddedPostgres(data.postgres, settings=fast) as server:
        prepare_database(load_settings({}), server.url)
    (folder / LOCK_FILE).unlink()


def _copy(folder: Path, to: Path) -> None:
    subprocess.run(["cp", "-a", folder, to], check=True)

"""The real program as a process of its own, on a folder and a port that nobody else has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx
import psutil

from infra.auth import mint_token
from infra.data_folder import cluster_path, secret_path
from infra.postgres import running_url
from infra.settings import Settings
from tests.e2e import plain
from tests.support import DEADLINE_SECONDS

PROJECT = Path(__file__).parents[2]
OWN_VARIABLES = Settings.variables()


class NotStarted(Exception):
    """The program ended, or was not ready in time."""


@dataclass
class Program:
    """`backlot up` on `home/data`; `home` also keeps what the program prints."""

    home: Path
    port: int
    variables: dict[str, str] = field(default_factory=dict)
    module: str = "backlot"
    _process: subprocess.Popen[bytes] | None = None
    _open: ExitStack = field(default_factory=ExitStack)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def process(self) -> subprocess.Popen[bytes]:
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
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "out").open("wb") as out, (self.home / "err").open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.module, *(arguments or ("up",))],
                cwd=self.home,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        return self

    def start(self) -> Self:
        """Launch, and return once it says that it is ready."""
        self.launch()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while f"ready: {self.url}\n" not in self.said:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise NotStarted(self.complained)
            time.sleep(0.02)
        return self

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Another command of the program, with the same settings and some more variables."""
        return subprocess.run(
            [sys.executable, "-m", "backlot", *arguments],
            check=False,
            cwd=self.home,
            env={**self.environment(), **variables},
            capture_output=True,
            text=True,
            timeout=2 * DEADLINE_SECONDS,
        )

    def environment(self) -> dict[str, str]:
        """The settings of this program, and nothing of who runs the tests."""
        foreign = {name: text for name, text in os.environ.items() if name not in OWN_VARIABLES}
        own = {
            "BACKLOT_PORT": str(self.port),
            "BACKLOT_DATA_DIR": str(self.data),
            "LOG_FORMAT": "json",
            # The source beside these tests, whichever copy of it is installed.
            "PYTHONPATH": str(PROJECT),
        }
        return {**foreign, **own, **self.variables}

    def token(self, user: str, *, admin: bool = False) -> str:
        secret = secret_path(self.data).read_text().strip()
        return mint_token(secret, user, ["admin"] if admin else [])

    def client(self, user: str | None = None, *, admin: bool = False) -> httpx.Client:
        """Calls this program as `user`, or as nobody; closed with the program."""
        headers = {"Authorization": f"Bearer {self.token(user, admin=admin)}"} if user else {}
        return self._open.enter_context(plain.client(base_url=self.url, headers=headers))

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
        """Leave no process behind, whatever a test did."""
        self._open.close()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.kill()
        for process in self.servers():
            process.kill()

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


def wait_for(condition: Callable[[], bool], seconds: float = DEADLINE_SECONDS) -> None:
    """Return once the condition holds; fails when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)

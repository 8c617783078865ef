"""The proxy of the production shape as a process: its real configuration, on ports of this test."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.composition import PROJECT
from tests.support import requires, unused_port

CONFIGURATION = PROJECT / "deploy" / "nginx.conf"
START_SECONDS = 60.0
API, MEDIA, CONSOLE, ITSELF = "8080", "9000", "8001", "127.0.0.1:8081"
# Root's nginx would work as another user, who may not enter the folders of these tests.
DIRECTIVES = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")


class NotStarted(Exception):
    """nginx ended, or does not answer."""


@dataclass(frozen=True)
class Proxy:
    """A running nginx: the API's address, the media's, the console's, and its folder.

    `nginx.log` is in the folder.
    """

    url: str
    media_url: str
    console_url: str
    folder: Path

    @property
    def log(self) -> str:
        """What it wrote to its standard output and error."""
        return (self.folder / "nginx.log").read_text(errors="replace")


@contextmanager
def running_nginx(
    folder: Path, upstreams: dict[str, str], changes: Mapping[str, str] | None = None
) -> Iterator[Proxy]:
    """nginx in front of these servers: host:port by the name of their upstream.

    The pages are nowhere, unless they are among them.
    `changes` are texts of its configuration and what stands there instead, such as lower limits.
    """
    program = requires("nginx")
    folder.mkdir(parents=True, exist_ok=True)
    ports = {given: str(unused_port()) for given in (API, MEDIA, CONSOLE, ITSELF)}
    nowhere = f"127.0.0.1:{unused_port()}"
    _configure(folder, {"web": nowhere, "console": nowhere} | upstreams, ports, changes or {})
    with (folder / "nginx.log").open("wb") as log:
        command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", DIRECTIVES]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _await(process, f"http://127.0.0.1:{ports[ITSELF]}/")
            at = {given: f"http://127.0.0.1:{port}" for given, port in ports.items()}
            yield Proxy(at[API], at[MEDIA], at[CONSOLE], folder)
        finally:
            process.terminate()
            process.wait(10)


def _configure(
    folder: Path,
    upstreams: dict[str, str],
    ports: Mapping[str, str],
    changes: Mapping[str, str],
) -> None:
    text = CONFIGURATION.read_text().replace("/tmp/", f"{folder}/")
    for found, instead in changes.items():
        assert found in text, f"nginx.conf has no {found}"
        text = text.replace(found, instead)
    text = text.replace("worker_processes auto", "worker_processes 1")
    for given, port in ports.items():
        text, count = re.subn(rf"listen {given};", f"listen 127.0.0.1:{port};", text)
        assert count == 1, f"nginx.conf listens on {given} once"
    (folder / "nginx.conf").write_text(text)
    blocks = (
        f"upstream {name} {{ zone {name} 64k; server {server}; keepalive 8; }}\n"
        for name, server in upstreams.items()
    )
    (folder / "upstreams.conf").write_text("".join(blocks))


def _await(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(url, trust_env=False).status_code == 204:
                return
        time.sleep(0.02)
    process.kill()
    raise NotStarted("nginx does not answer; see its nginx.log")

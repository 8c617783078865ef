"""Sending parts to the folder over HTTP: against `dd` with fsync on the same disk."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from benchmarks.bench import Bench, medians
from benchmarks.processes import Served, serving
from benchmarks.results import Comparison, Side
from infra.errors import OperatorError
from infra.http.auth import mint_token

MIB = 1024 * 1024
PART_BYTES = 8 * MIB  # the default of PART_SIZE_BYTES
AT_ONCE = 4
ANSWER_SECONDS = 60.0
OURS, ALONE = f"parts of 8 MiB, {AT_ONCE} at once", "parts of 8 MiB, one by one"
DD, DD_PARTS = "dd with fsync, one file", "dd with fsync, a file per part"

Measured = tuple[float, dict[str, float]]


class NotStored(OperatorError):
    """A part or a copy did not arrive as it was sent: then no figure counts."""


@dataclass(frozen=True, slots=True)
class Source:
    """The bytes to be moved; they lie in the page cache, so that no side waits to read them."""

    path: Path
    etags: list[str]

    @property
    def mib(self) -> float:
        return len(self.etags) * PART_BYTES / MIB

    def dd(self, folder: Path, *, files: int) -> Measured:
        """MiB/s of copying everything into so many files, one after another."""
        blocks = len(self.etags) * PART_BYTES // MIB // files
        targets = [folder / f"copied-{number}" for number in range(files)]
        _settle()
        started = time.perf_counter()
        for number, target in enumerate(targets):
            where = ["bs=1M", f"count={blocks}", f"skip={number * blocks}"]
            command = ["dd", f"if={self.path}", f"of={target}", *where, "conv=fsync", "status=none"]
            subprocess.run(command, check=True)
        seconds = time.perf_counter() - started
        for target in targets:
            target.unlink()
        return self.mib / seconds, {}


def make_source(path: Path, parts: int) -> Source:
    """Random bytes: neither a disk nor a hypervisor can spare itself the work."""
    etags = []
    with path.open("wb") as file:
        for _ in range(parts):
            content = secrets.token_bytes(PART_BYTES)
            file.write(content)
            etags.append(md5(content, usedforsecurity=False).hexdigest())
    return Source(path, etags)


class Sender:
    """A client of the API that leaves the work to the kernel, so that the server is measured."""

    def __init__(self, served: Served, token: str) -> None:
        self._served = served
        self._api = httpx.Client(
            base_url=f"http://127.0.0.1:{served.port}",
            headers={"Authorization": f"Bearer {token}"},
            timeout=ANSWER_SECONDS,
            trust_env=False,
        )

    def send(self, source: Source, *, at_once: int) -> Measured:
        """MiB/s from the first byte until the last part is answered, of an upload then aborted."""
        upload_id, urls = self._start(source)
        numbers = range(len(urls))
        _settle()
        cpu, own_cpu = self._served.cpu_seconds(), time.process_time()
        started = time.perf_counter()
        with ThreadPoolExecutor(at_once) as threads:
            shares = (numbers[first::at_once] for first in range(at_once))
            list(threads.map(lambda share: self._put(source, urls, share), shares))
        seconds = time.perf_counter() - started
        notes = {
            "server CPU s/GiB": (self._served.cpu_seconds() - cpu) / source.mib * 1024,
            "client CPU s/GiB": (time.process_time() - own_cpu) / source.mib * 1024,
        }
        self._api.delete(f"/uploads/{upload_id}").raise_for_status()
        return source.mib / seconds, notes

    def _start(self, source: Source) -> tuple[str, list[str]]:
        size = len(source.etags) * PART_BYTES
        film = {"title": "A film", "filename": "film.mp4", "contentType": "video/mp4"}
        answer = self._api.post("/uploads", json={**film, "sizeBytes": size})
        started = answer.raise_for_status().json()
        return started["uploadId"], [part["url"] for part in started["parts"]]

    def _put(self, source: Source, urls: list[str], share: range) -> None:
        """Send this share of the parts over one connection. Raises NotStored."""
        address = ("127.0.0.1", self._served.port)
        with (
            source.path.open("rb") as file,
            socket.create_connection(address, ANSWER_SECONDS) as connection,
        ):
            for index in share:
                url = urlsplit(urls[index])
                head = (
                    f"PUT {url.path}?{url.query} HTTP/1.1\r\n"
                    f"Host: {url.netloc}\r\nContent-Length: {PART_BYTES}\r\n\r\n"
                )
                connection.sendall(head.encode())
                connection.sendfile(file, index * PART_BYTES, PART_BYTES)
                answer = connection.recv(65536)
                if f'etag: "{source.etags[index]}"'.encode() not in answer:
                    raise NotStored(f"Part {index + 1} was answered: {answer!r}")


def run(bench: Bench) -> list[Comparison]:
    """MiB/s until all bytes are safe on the disk of the temporary folder.

    The limit is against the same files by `dd`, each synced: a part is safe when it is answered.
    One large file, synced once at its end, is what `dd` does best, and is shown beside.
    """
    source = make_source(bench.folder / "source", bench.size(64, 4))
    parts = len(source.etags)
    with _backlot(bench) as sender:
        measured = bench.interleave(
            bench.size(6, 1),
            {
                OURS: lambda _: sender.send(source, at_once=AT_ONCE),
                DD: lambda _: source.dd(bench.folder, files=1),
                ALONE: lambda _: sender.send(source, at_once=1),
                DD_PARTS: lambda _: source.dd(bench.folder, files=parts),
            },
        )
    source.path.unlink()
    # The first round warms up.
    sides = {name: _side(name, rounds[1:] or rounds) for name, rounds in measured.items()}
    return [
        Comparison("parts", "MiB/s", sides[OURS], sides[DD_PARTS], at_least=0.5),
        Comparison("parts", "MiB/s", sides[ALONE], sides[DD_PARTS]),
        Comparison("parts", "MiB/s", sides[OURS], sides[DD]),
    ]


def _side(name: str, rounds: list[Measured]) -> Side:
    return Side(name, [rate for rate, _ in rounds], medians([notes for _, notes in rounds]))


@contextmanager
def _backlot(bench: Bench) -> Iterator[Sender]:
    """The whole of Backlot, with its folder beside the files that `dd` writes."""
    secret = secrets.token_urlsafe(32)
    settings = {
        "DATABASE_URL": bench.database(),
        "JWT_SECRET": secret,
        "LOG_LEVEL": "warning",
        "BACKLOT_DATA_DIR": "data",
        "PART_SIZE_BYTES": str(PART_BYTES),
    }
    folder = bench.folder / "parts"
    with serving("server", folder, health="/readyz", settings=settings) as served:
        yield Sender(served, mint_token(secret, "uploader"))


def _settle() -> None:
    """No side pays for what another left to be written."""
    os.sync()

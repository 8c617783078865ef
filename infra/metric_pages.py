"""The metrics of several processes that are one program, added up into one page.

What a process counted stays in the sum when the process ends: a sum that falls looks to Prometheus
like a restart of everything, and it would take the rest of the sum for growth.
"""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Lock
from types import MappingProxyType

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from infra.metrics import render

log = structlog.get_logger(__name__)

# Less than Prometheus waits.
ANSWER_SECONDS = 2.0
COUNTED = frozenset({"counter", "histogram"})

COMBINED: Mapping[str, Callable[[Sequence[float]], float]] = MappingProxyType(
    {
        "backlot_llm_breaker_state": max,
        "process_start_time_seconds": min,
        "python_info": max,
    }
)
"""How what is no sum is made of the values of all processes."""


class Collected(Collector):
    """Metrics as they were added up."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def add_up(pages: Iterable[str], *, only: frozenset[str] | None = None) -> str:
    """Return one page of many; `only` metrics of these types."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], list[float]]] = {}
    for page in pages:
        for family in text_string_to_metric_families(page):
            if only is not None and family.type not in only:
                continue
            if family.name not in families:
                told = Metric(family.name, family.documentation, family.type)
                families[family.name], values[family.name] = told, {}
            of_family = values[family.name]
            for sample in family.samples:
                # In the order of the page, which is that of the buckets.
                key = sample.name, tuple(sample.labels.items())
                of_family.setdefault(key, []).append(sample.value)
    for name, family in families.items():
        combine = COMBINED.get(name, min if name.endswith("_created") else sum)
        for (sample_name, labels), found in values[name].items():
            family.add_sample(sample_name, dict(labels), combine(found))
    registry = CollectorRegistry()
    registry.register(Collected(families.values()))
    return generate_latest(registry).decode()


class Pages:
    """The pages of all processes, as the first one gathers them; safe to share between threads.

    Of a process that does not answer its last page counts.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._last: dict[int, str] = {}
        self._departed = ""

    def expect(self, pid: int) -> None:
        """Count what the process with this pid tells from now on."""
        with self._lock:
            self._last[pid] = ""

    def depart(self, pid: int) -> None:
        """Keep of a process that has ended what it had counted."""
        with self._lock:
            last = self._last.pop(pid, "")
            if last:
                self._departed = add_up([self._departed, last], only=COUNTED)

    async def whole(self, sockets: Path) -> bytes:
        """Return the page of all; each process has its socket in the folder `sockets`."""
        pids = list(self._last)
        asked = [_ask(socket_at(sockets, pid)) for pid in pids]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        pages: dict[int, str] = {}
        for pid, answer in zip(pids, answers, strict=True):
            if isinstance(answer, BaseException):
                log.warning("metrics_not_told", pid=pid, error=repr(answer))
            else:
                pages[pid] = answer.decode()
        return (await asyncio.to_thread(self._sum, pages)).encode()

    def _sum(self, pages: Mapping[int, str]) -> str:
        with self._lock:
            # Of one that has ended since, all that counts is in `departed`.
            self._last.update((pid, page) for pid, page in pages.items() if pid in self._last)
            known = [self._departed, *self._last.values()]
        return add_up([render().decode(), *known])


def socket_at(folder: Path, pid: int) -> Path:
    """Return where the process with this pid tells its metrics."""
    return folder / f"{pid}.sock"


@asynccontextmanager
async def pages_at(path: Path, page: Callable[[], Awaitable[bytes]]) -> AsyncIterator[None]:
    """Tell whoever connects to `path` the page, for the length of the block."""

    async def tell(_: StreamReader, writer: StreamWriter) -> None:
        try:
            writer.write(await page())
            await writer.drain()
        except ConnectionError:
            # Whoever asked has gone.
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(tell, str(path))
    try:
        yield
    finally:
        server.close()


async def ask_page(path: Path) -> bytes:
    """Return the page that is told at `path`; raise PageUnavailable."""
    try:
        return await _ask(path)
    except (OSError, TimeoutError) as error:
        raise PageUnavailable(repr(error)) from error


class PageUnavailable(Exception):
    """Whoever adds up the metrics does not answer."""


async def _ask(path: Path) -> bytes:
    async with asyncio.timeout(ANSWER_SECONDS):
        reader, writer = await asyncio.open_unix_connection(str(path))
        try:
            return await reader.read()
        finally:
            writer.close()

"""What `backlot doctor` says about Redis servers: do they answer, and is each its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from pydantic import SecretStr
from redis import RedisError

from backlot.signals import run
from infra.redis import connect_redis, server_of


class Probe(NamedTuple):
    """Where the servers are, without their passwords, and how they are."""

    url: str
    ok: bool
    detail: str


class ProbedRedis(NamedTuple):
    """One that answered; `run_id` is what it calls itself until it restarts."""

    name: str
    version: str
    run_id: str


def probe(urls: Sequence[SecretStr]) -> Probe:
    """Ask all the servers, each for a second or two."""
    found = run(_ask_all([url.get_secret_value() for url in urls]))
    servers = [server for server in found if isinstance(server, ProbedRedis)]
    complaints = [complaint for complaint in found if isinstance(complaint, str)]
    runs = [server.run_id for server in servers]
    same = [server.name for server in servers if runs.count(server.run_id) > 1]
    if same:
        complaints.append(f"{' and '.join(same)} are the same server")
    versions = ", ".join(sorted({server.version for server in servers}))
    answering = f"{len(servers)} of {len(found)} answer" if len(found) > 1 else ""
    detail = "; ".join(filter(None, [f"Redis {versions}" if versions else "", answering]))
    shown = ", ".join(_masked(url.get_secret_value()) for url in urls)
    return Probe(shown, not complaints, "; ".join(filter(None, [detail, *complaints])))


async def _ask_all(urls: Sequence[str]) -> Sequence[ProbedRedis | str]:
    return await asyncio.gather(*(_ask(url) for url in urls))


async def _ask(url: str) -> ProbedRedis | str:
    client = connect_redis(url)
    try:
        told = await client.info("server")
    except RedisError as error:
        return f"{server_of(url)}: {' '.join(str(error).split())}"
    finally:
        await client.aclose()
    return ProbedRedis(server_of(url), str(told["redis_version"]), str(told["run_id"]))


def _masked(url: str) -> str:
    return f"{urlsplit(url).scheme}://{server_of(url)}"

"""Invariant 7: Redis may vanish at any moment; who needs it says so, and the rest goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.program import Program
from tests.e2e.videos import upload
from tests.integration.redis_servers import RedisServer, redis_servers
from tests.support import eventually


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_servers(1, tmp_path) as (server,):
        yield server


def test_redis_goes_and_comes_back(
    make_program: Callable[..., Program], redis: RedisServer
) -> None:
    program = make_program(REDIS_URL=redis.url).start()
    alice = program.client("alice")

    def parts() -> dict[str, Any]:
        answer = alice.get("/readyz")
        assert answer.status_code == 200
        found: dict[str, Any] = answer.json()["parts"]
        return found

    video = upload(alice)
    assert parts()["redis"]["ok"]
    assert parts()["locks"]["ok"]

    redis.kill()
    eventually(lambda: not parts()["redis"]["ok"])
    assert not parts()["locks"]["ok"]
    assert alice.put(f"/videos/{video}/like").is_success
    assert alice.get(f"/videos/{video}").is_success

    redis.start()
    eventually(lambda: bool(parts()["redis"]["ok"] and parts()["locks"]["ok"]))
    upload(alice)
    assert program.stop() == 0
    assert "lock_node_silent" in program.complained
    assert "lock_node_back" in program.complained


def test_it_starts_without_its_redis(
    make_program: Callable[..., Program], redis: RedisServer
) -> None:
    redis.kill()
    program = make_program(REDIS_URL=redis.url).start()
    redis.start()
    upload(program.client("alice"))
    assert program.stop() == 0

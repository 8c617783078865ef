"""Real `dramatiq` processes on a real Redis: killed, stopped, and left without their broker."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import redis

from backlot.cli import main
from tests.fork_server import ForkedProcess
from tests.integration.redis_servers import RedisServer, redis_servers
from tests.integration.task_support import QUICK, Toy, quick_settings
from tests.support import DEADLINE_SECONDS, eventually, unused_port

# The thread that holds the delayed ones.
LOST = r"connection error.*translation\.DQ|translation\.DQ.*connection error"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_servers(1, tmp_path) as (server,):
        yield server


class Program:
    """A group of processes as an operator starts it: one parent, one worker."""

    def __init__(self, server: RedisServer, log: Path, **changed: str) -> None:
        self.port = unused_port()
        self.log = log
        self._environment = os.environ | {
            **QUICK,
            "PYTHONPATH": str(ROOT),
            "TASK_BROKER_URL": server.url,
            "TASK_STOP_SECONDS": "3",
            "BACKLOT_PORT": str(self.port),
            "LOG_FORMAT": "json",
            **changed,
        }

    @contextmanager
    def running(self) -> Iterator[ForkedProcess]:
        process = ForkedProcess(
            "dramatiq",
            ["tests.integration.toy_tasks", "--processes=1", "--threads=2", "--skip-logging"],
            cwd=ROOT,
            env=self._environment,
            stdout=Path(os.devnull),
            stderr=self.log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.kill_session()
            process.wait(10)


class Sender:
    """Sends to the toys, and reads what they told."""

    def __init__(self, server: RedisServer) -> None:
        self._redis = redis.Redis(port=server.port)
        self._toy = Toy(quick_settings(server.url))

        async def elsewhere(*_: object) -> None: ...

        for name in ("tell", "linger", "fail"):
            self._toy.actor(elsewhere, actor_name=name)

    def send(self, name: str, *args: object) -> None:
        self._toy.send(name, *args)

    def told(self) -> list[str]:
        told = cast("list[bytes]", self._redis.lrange("told", 0, -1))
        return [line.decode() for line in told]

    def close(self) -> None:
        self._redis.close()
        self._toy.broker.close()


@pytest.fixture
def sender(server: RedisServer) -> Iterator[Sender]:
    with closing(Sender(server)) as sender:
        yield sender


@pytest.fixture
def program(server: RedisServer, tmp_path: Path) -> Program:
    return Program(server, tmp_path / "program.log")


def test_a_killed_process_loses_no_task(program: Program, sender: Sender) -> None:
    with program.running() as first:
        sender.send("linger", "a", 2)
        eventually(lambda: "begin a" in sender.told())
        first.kill_session()
    assert "end a" not in sender.told()
    with program.running():
        eventually(lambda: "end a" in sender.told())
    assert sender.told().count("begin a") == 2


def test_sigterm_lets_short_tasks_end_and_returns_long_ones(
    program: Program, sender: Sender
) -> None:
    with program.running() as first:
        sender.send("linger", "short", 1.5)
        sender.send("linger", "long", 8)
        sender.send("tell", "later")
        eventually(lambda: {"begin short", "begin long"} <= set(sender.told()))
        first.send_signal(signal.SIGTERM)
        assert first.wait(DEADLINE_SECONDS) == 0
    told = sender.told()
    assert "end short" in told
    assert "end long" not in told
    assert told[-1].startswith("close "), "resources are closed last"
    with program.running():
        eventually(lambda: "end long" in sender.told())
        eventually(lambda: "later for req-1" in sender.told())
    assert b"task_returned" in program.log.read_bytes()


def test_failures_back_off_die_once_and_are_seen_and_sent_again_by_operators(
    program: Program,
    sender: Sender,
    server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TASK_BROKER_URL", server.url)
    with program.running():
        sender.send("tell", "hello")
        sender.send("fail")
        eventually(lambda: "dead fail after 3" in sender.told())
        eventually(lambda: _backlot(capsys, "list")["items"][0]["dead"] == 1)
        (letter,) = _backlot(capsys, "dead")["items"]
        assert (letter["actor"], letter["attempts"]) == ("fail", 3)
        assert letter["error"] == "ValueError: always"
        assert letter["correlationId"] == "req-1"
        _sees(program, r'backlot_tasks_total\{actor="fail",outcome="dead"\} 1.0')
        _sees(program, r'backlot_tasks_total\{actor="fail",outcome="retried"\} 2.0')
        _sees(program, r'backlot_tasks_total\{actor="tell",outcome="done"\} 1.0')
        assert _backlot(capsys, "redrive", letter["id"])["sent"] == [letter["id"]]
        eventually(lambda: sender.told().count("dead fail after 3") == 2)
        eventually(lambda: program.log.read_bytes().count(b"task_dead") == 2)
    lines = [json.loads(line) for line in program.log.read_text().splitlines()]
    dead = [line for line in lines if line.get("event") == "task_dead"]
    assert [line["correlationId"] for line in dead] == ["req-1", "req-1"]


def test_when_redis_comes_back_the_delayed_tasks_go_on(
    sender: Sender, server: RedisServer, tmp_path: Path
) -> None:
    pauses = {"TASK_MIN_BACKOFF_SECONDS": "6", "TASK_MAX_BACKOFF_SECONDS": "6"}
    program = Program(server, tmp_path / "program.log", TASK_MAX_RETRIES="1", **pauses)
    with program.running():
        sender.send("fail")
        eventually(lambda: b"task_retried" in program.log.read_bytes())
        # Until the worker holds it in its memory: a poll of the delayed takes a second.
        time.sleep(1.3)
        server.pause()
        eventually(lambda: re.search(LOST, program.log.read_text()))
        server.resume()
        eventually(lambda: "dead fail after 2" in sender.told())
        sender.send("tell", "after")
        eventually(lambda: "after for req-1" in sender.told())


def test_in_process_tasks_can_not_be_seen_from_outside(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["backlot", "tasks", "list"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 4
    assert "inside the running server" in capsys.readouterr().err


def _backlot(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, list[Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["backlot", "tasks", *words, "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    found: dict[str, list[Any]] = json.loads(capsys.readouterr().out)
    return found


def _sees(program: Program, pattern: str) -> None:
    eventually(
        lambda: re.search(pattern, httpx.get(f"http://127.0.0.1:{program.port}/metrics").text)
    )

"""The security log tells of everything, in few lines, whatever comes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from infra.metrics import value
from infra.security_log import MAX_TEXT, OTHERS, SecurityEvent, SecurityLog
from tests.support import ended, until

REFUSED, LIMIT = SecurityEvent.TOKEN_REFUSED, SecurityEvent.LIMIT_HIT


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    with capture_logs() as found:
        yield found  # type: ignore[misc]


def told(lines: list[dict[str, Any]]) -> list[tuple[str, str, int | None]]:
    return [(line["kind"], line["subject"], line.get("repeats")) for line in lines]


def test_the_first_of_a_kind_and_subject_is_logged_at_once(lines: list[dict[str, Any]]) -> None:
    log = SecurityLog()
    log.record(REFUSED, "10.0.0.1", reason="token has expired")
    log.record(REFUSED, "10.0.0.2", reason="token has expired")
    log.record(LIMIT, "10.0.0.1", limit="write")
    assert told(lines) == [
        ("token_refused", "10.0.0.1", None),
        ("token_refused", "10.0.0.2", None),
        ("limit_hit", "10.0.0.1", None),
    ]
    assert lines[0]["event"] == "security"
    assert lines[0]["log_level"] == "warning"
    assert lines[0]["reason"] == "token has expired"


def test_repeats_are_one_line_when_the_interval_ends(lines: list[dict[str, Any]]) -> None:
    clock = Clock()
    log = SecurityLog(interval_seconds=60, clock=clock)
    for _ in range(1_001):
        log.record(REFUSED, "10.0.0.1", reason="signature does not match")
    assert len(lines) == 1
    clock.now = 60.0
    log.record(REFUSED, "10.0.0.1")
    assert told(lines)[1:] == [
        ("token_refused", "10.0.0.1", 1_000),
        ("token_refused", "10.0.0.1", None),
    ]
    assert lines[1]["reason"] == "signature does not match"


def test_a_crowd_shares_one_line_beyond_the_bound(lines: list[dict[str, Any]]) -> None:
    log = SecurityLog(subjects=10)
    for number in range(1_000):
        log.record(REFUSED, f"10.0.{number // 250}.{number % 250}")
        log.record(LIMIT, "ann")
    log.flush()
    refused = [line for line in told(lines) if line[0] == "token_refused"]
    assert len(refused) == 12
    assert refused[-1] == ("token_refused", OTHERS, 989)
    # A crowd of one kind takes no room from another.
    assert ("limit_hit", "ann", 999) in told(lines)


def test_every_event_is_counted(lines: list[dict[str, Any]]) -> None:
    before = value("backlot_security_events_total", kind="limit_hit")
    log = SecurityLog(subjects=1)
    for number in range(7):
        log.record(LIMIT, f"viewer {number}")
    assert value("backlot_security_events_total", kind="limit_hit") == before + 7


def test_what_clients_send_neither_breaks_lines_nor_fills_them(lines: list[dict[str, Any]]) -> None:
    SecurityLog().record(REFUSED, "a\nb\u202ec" + "x" * 10_000, reason="d\re")
    assert lines[0]["subject"].startswith("abcx")
    assert len(lines[0]["subject"]) < MAX_TEXT
    assert lines[0]["reason"] == "de"


def test_it_ends_intervals_by_itself_while_it_runs(lines: list[dict[str, Any]]) -> None:
    log = SecurityLog(interval_seconds=0.01)

    async def run() -> None:
        running = asyncio.create_task(log.run())
        log.record(LIMIT, "ann")
        log.record(LIMIT, "ann")
        await until(lambda: ("limit_hit", "ann", 1) in told(lines))
        await ended(running)

    asyncio.run(run())


def test_its_end_tells_what_is_left(lines: list[dict[str, Any]]) -> None:
    log = SecurityLog()

    async def run() -> None:
        running = asyncio.create_task(log.run())
        await asyncio.sleep(0)
        log.record(LIMIT, "ann")
        log.record(LIMIT, "ann")
        await ended(running)

    asyncio.run(run())
    assert told(lines)[1:] == [("limit_hit", "ann", 1)]

"""One stream, one format, for our lines and the libraries'."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from infra.logging import CORRELATION_ID, configure_logging
from infra.settings import load_settings


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def started(**env: str) -> io.StringIO:
    stream = io.StringIO()
    configure_logging(load_settings(env).logs, stream)
    return stream


def test_outside_a_terminal_a_line_is_json() -> None:
    stream = started()
    structlog.get_logger("backlot.test").info("likes_counted", videos=3)
    (line,) = lines(stream)
    assert line["event"] == "likes_counted"
    assert (line["videos"], line["level"], line["logger"]) == (3, "info", "backlot.test")
    assert line["timestamp"].endswith("Z")


def test_libraries_log_the_same_way() -> None:
    stream = started()
    logging.getLogger("uvicorn.error").warning("socket %s closed", 7)
    (line,) = lines(stream)
    assert (line["event"], line["level"]) == ("socket 7 closed", "warning")


def test_the_correlation_id_stands_in_each_line() -> None:
    stream = started()
    token = CORRELATION_ID.set("abc")
    structlog.get_logger().info("one")
    logging.getLogger("library").error("two")
    CORRELATION_ID.reset(token)
    structlog.get_logger().info("three")
    assert [line.get("correlationId") for line in lines(stream)] == ["abc", "abc", None]


def test_the_level_holds_for_both_kinds() -> None:
    stream = started(LOG_LEVEL="error")
    structlog.get_logger().warning("no")
    logging.getLogger("library").warning("no")
    structlog.get_logger().error("yes")
    assert [line["event"] for line in lines(stream)] == ["yes"]


def test_an_exception_is_told_in_its_line() -> None:
    stream = started()
    try:
        raise ValueError("broken \udc80")
    except ValueError:
        structlog.get_logger().exception("failed", raw=b"\xff", odd="\udc80")
    (line,) = lines(stream)
    assert "ValueError: broken" in line["exception"]


def test_on_request_lines_are_for_humans() -> None:
    stream = started(LOG_FORMAT="console")
    structlog.get_logger().info("ready", port=8000)
    assert "ready" in stream.getvalue()
    assert not stream.getvalue().startswith("{")

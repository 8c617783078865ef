"""Structured logs: JSON for machines, readable lines on a terminal, one stream for everything.

A correlation id stands in each line logged while it is set, ours or a library's.
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from typing import TextIO

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from infra.settings.adapters import LogSettings

# They would otherwise tell each connection or statement at INFO, and the OpenAI SDK each comment
# that it sends at DEBUG.
QUIET = (
    "asyncio", "httpcore", "httpcore2", "httpx", "httpx2", "openai", "psycopg", "psycopg.pool",
    "uvicorn.access",
)  # fmt: skip

CORRELATION_ID: ContextVar[str | None] = ContextVar("correlation_id", default=None)
"""Set for the length of a request, it puts ``correlationId`` into every line logged meanwhile.

A variable of our own, and no context manager: either costs each request several microseconds.
"""


def _correlate(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    correlation_id = CORRELATION_ID.get()
    if correlation_id is not None:
        event["correlationId"] = correlation_id
    return event


EVERY_LINE: tuple[Processor, ...] = (
    _correlate,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def configure_logging(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send structlog and the standard library's loggers to stderr, in the configured format.

    Start uvicorn with ``log_config=None``, so that it leaves its loggers alone.
    """
    stream = stream or sys.stderr
    as_json = settings.format == "json" or (settings.format == "auto" and not stream.isatty())
    level = getattr(logging, settings.level.upper())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=EVERY_LINE, processors=_rendering(as_json, stream)
        )
    )
    _route_standard_loggers(handler, level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *EVERY_LINE,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _rendering(as_json: bool, stream: TextIO) -> list[Processor]:
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if not as_json:
        # Plain: the pretty traceback prints local variables, and comments are personal.
        plain = structlog.dev.plain_traceback
        colors = stream.isatty()
        return [strip, structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
    return [strip, structlog.processors.format_exc_info, _render_json]


def _render_json(_: WrappedLogger, __: str, event: EventDict) -> str:
    # Surrogates and bytes from the outside must not turn a log line into an exception.
    try:
        return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    except orjson.JSONEncodeError:
        return orjson.dumps({key: ascii(value) for key, value in event.items()}).decode()


def _route_standard_loggers(handler: logging.Handler, level: int) -> None:
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
    for name in QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))

"""The event log at the command line: asked on one connection, in the HTTP API's own way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

import psycopg

from backlot.database import database_url
from backlot.signals import run
from infra.codec import EventMapper
from infra.connecting import UNHURRIED, explained, open_async_connection
from infra.errors import OperatorError
from infra.privacy import PayloadMode
from infra.settings import load_settings
from projections.audit.index import Audit
from readapi.audit.inspector import Inspector, NotRecorded
from readapi.paging import InvalidCursor

T = TypeVar("T")


class NotInspected(OperatorError):
    """The log could not be asked, or holds nothing of what was asked for."""


def inspect(mode: PayloadMode, question: Callable[[Inspector], Awaitable[T]]) -> T:
    """The answer to a question about the log; raises NotInspected and NothingRuns."""
    url = database_url(load_settings())
    try:
        return run(_ask(url, mode, question))
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        raise NotInspected(
            "the audit's index is not there yet: start this version of Backlot on it once"
        ) from error
    except psycopg.Error as error:
        raise NotInspected(f"the database does not answer: {explained(error)}") from error
    except UnicodeEncodeError as error:
        raise NotInspected("what was asked for is not text in UTF-8") from error
    except (NotRecorded, InvalidCursor) as error:
        raise NotInspected(str(error)) from error


async def _ask(url: str, mode: PayloadMode, question: Callable[[Inspector], Awaitable[T]]) -> T:
    async with await open_async_connection(url, "events", UNHURRIED) as conn:
        return await question(Inspector(conn, Audit(), EventMapper(), mode))


def parse_time(option: str, text: str | None) -> datetime | None:
    """A time in ISO 8601, in UTC unless it says otherwise; raises NotInspected."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise NotInspected(
            f"{option}: {text!r} is not a time such as 2026-11-22 or 2026-11-22T09:30:15+01:00"
        ) from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)

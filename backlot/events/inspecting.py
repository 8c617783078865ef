"""The event log at the command line: asked on one connection, in the HTTP API's own way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import psycopg

from backlot.database import database_url
from backlot.signals import run
from infra.connecting import UNHURRIED, explained, open_async_connection
from infra.errors import OperatorError, UsageError
from infra.privacy import PayloadMode
from infra.settings import load_settings
from projections.audit.index import Audit
from readapi.audit.inspector import Inspector, NotRecorded
from readapi.paging import InvalidCursor

T = TypeVar("T")


class NotInspected(OperatorError):
    """The log could not be asked, or holds nothing of what was asked for."""


def inspect(mode: PayloadMode, question: Callable[[Inspector], Awaitable[T]]) -> T:
    """The answer to a question about the log; raises UsageError, NotInspected, NothingRuns."""
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
    except NotRecorded as error:
        raise NotInspected(str(error)) from error
    except InvalidCursor as error:
        raise UsageError(str(error)) from error


async def _ask(url: str, mode: PayloadMode, question: Callable[[Inspector], Awaitable[T]]) -> T:
    async with await open_async_connection(url, "events", UNHURRIED) as conn:
        return await question(Inspector(conn, Audit(), mode))

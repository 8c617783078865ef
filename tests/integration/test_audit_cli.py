"""`backlot events` on a database that lacks something: one line that says what to do."""

from __future__ import annotations

import pytest

from backlot.events.commands import NotInspected, inspect
from engine.payload_mode import PayloadMode
from readapi.audit.inspector import AuditStats
from tests.integration.audit_support import append, index, random_log
from tests.integration.event_log import recording


def count() -> AuditStats:
    return inspect(PayloadMode.NONE, lambda inspector: inspector.stats())


def test_a_log_that_was_never_indexed(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    with pytest.raises(NotInspected, match="the audit's index is not there yet"):
        count()
    with recording(database_url), pytest.raises(NotInspected, match="not there yet"):
        count()
    append(database_url, random_log(1, 20))
    index(database_url, 5)
    assert count().events == 20


def test_a_database_that_is_away(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url.replace("/test_", "/gone_test_"))
    with pytest.raises(NotInspected, match="the database does not answer"):
        count()


def test_an_argument_that_is_no_text(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    append(database_url, random_log(1, 5))
    index(database_url)
    with pytest.raises(NotInspected, match="not text in UTF-8"):
        inspect(PayloadMode.NONE, lambda inspector: inspector.trace("\udcff"))

"""Array literals arrive in PostgreSQL as the values they were made from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from infra.postgres.connection import column, texts

TEXTS = [
    "plain",
    "",
    "NULL",
    "a,b",
    "{}",
    'say "hi"',
    "back\\slash",
    '\\"',
    " blank ",
    "ø 🎬\nline",
]


@pytest.mark.parametrize("values", [TEXTS, *([text] for text in TEXTS), [*TEXTS, None], []])
def test_texts_keep_every_character(database_url: str, values: list[str | None]) -> None:
    assert _sent(database_url, "text", values) == values


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("uuid", [uuid4(), uuid4()]),
        ("bigint", [-1, 0, 2**63 - 1]),
        ("bytea", [b"", b"\x00\xff"]),
        ("uuid", [uuid4(), None]),
        ("uuid", [None, None]),
        ("bigint", [7, None]),
        ("timestamptz", [datetime.min.replace(tzinfo=UTC), datetime.now(UTC)]),
        ("timestamptz", [datetime(2026, 3, 1, 12, 30, tzinfo=timezone(timedelta(hours=-5))), None]),
        ("timestamptz", [None, None]),
    ],
)
def test_other_kinds_too(database_url: str, kind: str, values: list[Any]) -> None:
    assert _sent(database_url, kind, values) == values


@pytest.mark.parametrize("values", [TEXTS, [""], []])
def test_texts_alone_arrive_as_they_are(database_url: str, values: list[str]) -> None:
    with psycopg.connect(database_url) as conn:
        rows = conn.execute(b"SELECT unnest(%s::text[])", (texts(values),)).fetchall()
    assert [value for (value,) in rows] == values


def _sent(database_url: str, kind: str, values: list[Any]) -> list[Any]:
    with psycopg.connect(database_url) as conn, conn.cursor(binary=True) as cursor:
        statement = f"SELECT u FROM unnest(%b::{kind}[]) AS u".encode()
        return [value for (value,) in cursor.execute(statement, (column(values),))]

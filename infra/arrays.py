"""Arrays for PostgreSQL as literals: psycopg's own dumpers take three times as long for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID


def array(items: Iterable[str]) -> str:
    """An array literal of items that need no quotes."""
    return "{" + ",".join(items) + "}"


def column(values: Sequence[Any]) -> Any:
    """Values of one column for `unnest(%b::type[])`: a literal where none needs to be escaped."""
    kinds = set(map(type, values))
    if kinds == {UUID}:
        return array([b"".join([value.bytes for value in values]).hex(",", 16)])
    if kinds == {int}:
        return array(map(str, values))
    if kinds == {str}:
        return texts(values)
    return list(values)


def texts(values: Sequence[str]) -> str:
    """An array literal of any texts."""
    body = '","'.join(values)
    if "\\" in body or body.count('"') != 2 * (len(values) - 1):
        body = '","'.join(value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return '{"' + body + '"}'

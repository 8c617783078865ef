"""Arrays for PostgreSQL as literals: psycopg's own dumpers take three times as long for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID


def array(items: Iterable[str]) -> str:
    """An array literal of items that need no quotes."""
    return "{" + ",".join(items) + "}"


def column(values: Sequence[Any]) -> Any:
    """Values of one column for `unnest(%b::type[])`: a literal where none of them needs quotes."""
    kinds = set(map(type, values))
    if kinds == {UUID}:
        return array(value.hex for value in values)
    if kinds == {int}:
        return array(map(str, values))
    return list(values)

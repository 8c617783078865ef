"""A database with two users: the one who owns the event log, and the one who runs the program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from os import getpid
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

_numbers = count(1)


@dataclass(frozen=True)
class TwoUsers:
    """The same database three times: for a superuser, for the owner, for the running user."""

    url: str
    owner: str
    user: str

    @property
    def owner_url(self) -> str:
        return as_user(self.url, self.owner)

    @property
    def user_url(self) -> str:
        return as_user(self.url, self.user)

    def settings(self) -> dict[str, str]:
        """What makes Backlot use both."""
        return {"DATABASE_URL": self.user_url, "DATABASE_OWNER_URL": self.owner_url}


def as_user(url: str, user: str) -> str:
    """The same database for another user of a server that believes everybody."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}@{parts.netloc.rpartition('@')[2]}"))


@contextmanager
def two_users(url: str) -> Iterator[TwoUsers]:
    """What docs/deploying.md tells a superuser to do; undone at the end."""
    number = f"{getpid()}_{next(_numbers)}"
    names = TwoUsers(url, f"owner_{number}", f"running_{number}")
    owner, user = sql.Identifier(names.owner), sql.Identifier(names.user)
    database = sql.Identifier(urlsplit(url).path.lstrip("/"))
    with psycopg.connect(url, autocommit=True) as root:
        for text in (
            "CREATE ROLE {user} LOGIN",
            "CREATE ROLE {owner} LOGIN IN ROLE {user}",
            "ALTER DATABASE {database} OWNER TO {owner}",
        ):
            root.execute(sql.SQL(text).format(owner=owner, user=user, database=database))
        try:
            yield names
        finally:
            for name in (owner, user):
                root.execute(sql.SQL("REASSIGN OWNED BY {} TO CURRENT_USER").format(name))
                root.execute(sql.SQL("DROP OWNED BY {}").format(name))
                root.execute(sql.SQL("DROP ROLE {}").format(name))

"""`backlot keys`: what the keys of persons are wrapped by, and how that is changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from backlot.arguments import group
from backlot.database import (
    database_at_hand,
    database_url,
    key_encryption,
    recorded,
)
from backlot.output import Json, show, table
from backlot.screen import Yes, require_yes
from infra.errors import ExitCode, OperatorError
from infra.settings import load_settings

if TYPE_CHECKING:
    from psycopg import Connection

    from engine.operations import Recording

SUBJECT = "keys"

app = group("The keys that texts of persons are encrypted with.")


class RotationFailed(OperatorError):
    """A person's key can't be unwrapped; the rest waits."""


@app.command(name="show")
def show_keys(as_json: Json = False) -> None:
    """What wraps the keys, since when, and of how many persons. Exit code 1: it does not fit."""
    from engine.wrapping_keys import load_wrapping_keys, look
    from infra.http.shapes import rfc3339

    settings = load_settings()
    kek, fault = key_encryption(settings), None
    with database_at_hand(), _connection(database_url(settings)) as conn:
        found = look(conn)
        try:
            load_wrapping_keys(conn, kek)
        except OperatorError as error:
            fault = str(error)
    rows = [
        (each.number, each.purpose, each.persons, rfc3339(each.made_at), each.by) for each in found
    ]
    headings = ("number", "purpose", "persons", "made", "wrapped by")
    told = [f"key-encryption key: {kek.name}", *table(headings, rows), *([fault] if fault else [])]
    names = ("number", "purpose", "persons", "madeAt", "wrappedBy")
    data = {
        "keyEncryptionKey": kek.name,
        "kind": "external" if settings.keys.chosen else "embedded",
        "fits": fault is None,
        "detail": fault,
        "wrappingKeys": [dict(zip(names, row, strict=True)) for row in rows],
    }
    show("\n".join(told), data, as_json)
    raise typer.Exit(ExitCode.DONE if fault is None else ExitCode.NOT_WELL)


@app.command()
def rotate(yes: Yes = False, as_json: Json = False) -> None:
    """Wrap the keys of all persons by a new wrapping key; goes on where it was interrupted.

    Everything goes on meanwhile.
    """
    from engine import wrapping_keys

    settings = load_settings()
    url = database_url(settings)
    require_yes("Wrap the keys of all persons by a new wrapping key?", yes=yes)
    with _recorded(url, "rotate") as (conn, running):
        try:
            done = wrapping_keys.rotate(conn, key_encryption(settings))
        except wrapping_keys.KeyDamaged as error:
            raise RotationFailed(
                f"{error}: restore it, or forget the person, and rotate"
            ) from error
        running.result = done._asdict()
    begun = "made" if done.begun else "was made before; went on with"
    text = f"wrapping key {done.newest} {begun}; wraps the keys of {done.persons:,} more persons"
    removed = ", ".join(map(str, done.removed))
    show(f"{text}; removed: {removed}", done._asdict(), as_json)


@app.command()
def rewrap(yes: Yes = False, as_json: Json = False) -> None:
    """Wrap the wrapping keys by the key-encryption key that the settings name now.

    What that has not wrapped is unwrapped by the former one: the one in the data folder, or what
    OLD_KEY_ENCRYPTION_KEY, OLD_VAULT_TRANSIT_KEY or OLD_KMS_KEY_ID name.
    """
    from engine import wrapping_keys
    from infra.key_encryption import key_encryption_of

    settings = load_settings()
    url, kek = database_url(settings), key_encryption(settings)
    former = key_encryption_of(settings.former_keys, settings.server.data_dir)
    require_yes(f"Have the keys wrapped by {kek.name} from now on?", yes=yes)
    with _recorded(url, "rewrap") as (conn, running):
        done = wrapping_keys.rewrap(conn, kek, former)
        running.result = done._asdict()
    before = ", ".join(done.before)
    text = f"{done.keys} wrapping keys are wrapped by {done.by} now, before by {before}"
    show(f"{text}; restart every process whose settings name another", done._asdict(), as_json)


@contextmanager
def _recorded(url: str, action: str) -> Iterator[tuple[Connection[Any], Recording]]:
    with (
        database_at_hand(),
        _connection(url) as conn,
        recorded(url, action, SUBJECT, {}) as running,
    ):
        yield conn, running


def _connection(url: str) -> Connection[Any]:
    from infra.postgres.connection import open_connection

    return open_connection(url, "operator")

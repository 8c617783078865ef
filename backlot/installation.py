"""The databases of an installation with their tables, erased again once restored; its objects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from psycopg import Connection, OperationalError
from psycopg.errors import InsufficientPrivilege
from psycopg.rows import TupleRow

from backlot.features import PERSONAL, TABLES, read_models
from backlot.signals import run
from engine.erasures import compare_forgotten, erase_again, purge_restored
from engine.installation import ENGINE, install, make_tables, migrate
from engine.persons import Persons
from engine.privileges import give_rights, make_user, running_user
from engine.seals.proofs import Proofs
from infra.data_folder import DataFolder
from infra.errors import OperatorError
from infra.objects.folder import FolderStore
from infra.objects.port import ObjectStore, ObjectStoreUnavailable, now
from infra.postgres.connection import explained, open_connection
from infra.settings import SERVING, Role, Settings
from projections.analytics import schema as analytics_schema
from projections.feedback.reports import TABLES as FEEDBACK


class DatabaseUnreachable(OperatorError):
    """The configured PostgreSQL does not take this program's connection."""


class TablesMissing(OperatorError):
    """The database lacks tables that its user may not make."""


def prepare_database(settings: Settings, database_url: str) -> None:
    """Make the tables that are missing, each as the user whose they are to be.

    Raise OperatorError where a database can't be reached, or its user may not make them.
    """
    owner_url = settings.database.owner_url
    if owner_url is not None:
        with reached(owner_url.get_secret_value(), "DATABASE_OWNER_URL") as conn:
            user, password = running_user(database_url)
            make_user(conn, user, password)
            make_tables(conn)
            give_rights(conn, user)
    with reached(database_url, "DATABASE_URL") as conn, _allowed(owner_url is None):
        make_tables(conn, *TABLES)
        install(conn, read_models().all())
    with (
        reached(settings.analytics.url(database_url), "TIMESCALE_URL") as conn,
        _allowed(owner_url is None),
    ):
        migrate(conn, ENGINE)
        analytics_schema.migrate(conn)
        migrate(conn, FEEDBACK)


def erase_restored(settings: Settings, database_url: str, persons: Persons, proofs: Proofs) -> None:
    """Erase whom a restored database has again, before anything is served.

    Raise AnchorsUnusable where a place outside the database can't say who was forgotten.
    """
    completes = Role.WORKERS in settings.server.roles
    with reached(database_url, "DATABASE_URL") as conn:
        found = compare_forgotten(conn, proofs.outside.forgotten, completes=completes)
        if found:
            with reached(settings.analytics.url(database_url), "TIMESCALE_URL") as analytics:
                erase_again(persons, found, partial(purge_restored, conn, analytics, PERSONAL))


@contextmanager
def _allowed(alone: bool) -> Iterator[None]:
    """Raise TablesMissing where a user may not make what is missing; `alone`: no owner is set."""
    try:
        yield
    except InsufficientPrivilege as error:
        remedy = (
            "run `backlot migrate` with DATABASE_OWNER_URL" if alone else "see docs/operations.md"
        )
        raise TablesMissing(
            f"tables are missing, and this user may not make them ({explained(error)}): {remedy}"
        ) from error


def reached(url: str, setting: str) -> Connection[TupleRow]:
    """Return a connection; raise DatabaseUnreachable, which names the setting."""
    try:
        return open_connection(url, "installation")
    except OperationalError as error:
        raise DatabaseUnreachable(
            f"{setting}: PostgreSQL can't be reached there: {explained(error)}"
        ) from error


def open_objects(
    settings: Settings, folder: DataFolder, secret: str, stack: ExitStack, *, first: bool = True
) -> ObjectStore:
    """Return the store of these settings, ready for this process's roles; `stack` closes it.

    Raise OperatorError with one clear line when the folder or the bucket is of no use.
    """
    roles = settings.server.roles
    try:
        if settings.objects.bucket is None:
            local = FolderStore(folder.objects, secret.encode(), settings.objects.url_ttl, now)
            if first and Role.COMMANDS in roles:
                # Only the process that takes uploads may sweep up what a crash left of them.
                run(local.recover())
            return local
        # Its library is slow to import, and not needed where objects lie in a folder.
        from infra.objects.s3 import S3Store

        store = S3Store(settings.objects)
        stack.callback(store.close)
        if roles != {Role.PROJECTIONS}:
            store.probe()
        if first and roles & SERVING and settings.cors.origins:
            from infra.objects.s3_cors import warn_of_cors

            warn_of_cors(settings.objects, settings.cors.origins)
    except ObjectStoreUnavailable as error:
        raise OperatorError(error.cause) from error
    return store

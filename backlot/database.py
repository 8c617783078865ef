"""The database at hand, the local secret, and how a command of an operator is recorded."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg
from eventsourcing.persistence import PersistenceError

from domain.errors import DomainError
from domain.model import OPERATOR_PREFIX
from domain.operation import Members
from engine.event_store import open_recorder
from engine.log import MAPPER
from engine.operations import Recording, recording
from engine.persons import Persons
from infra.data_folder import cluster_path, secret_path
from infra.errors import OperatorError
from infra.key_encryption import KeyEncryption, key_encryption_of
from infra.postgres.connection import explained
from infra.settings import Settings


class NoSecret(OperatorError):
    """Nothing here can sign a token."""


class NothingRuns(OperatorError):
    """The embedded database is not started."""


class DatabaseAway(OperatorError):
    """The database does not answer, or is not one of Backlot's."""


AWAY = (psycopg.OperationalError, psycopg.InterfaceError, PersistenceError)


@contextmanager
def database_at_hand(*faults: type[Exception]) -> Iterator[None]:
    """Raise DatabaseAway where the database goes away, lacks the tables, or has one of `faults`."""
    away: tuple[type[Exception], ...] = (*AWAY, *faults)
    try:
        yield
    except psycopg.errors.UndefinedTable as error:
        raise DatabaseAway("its tables are not there yet: start Backlot on it once") from error
    except away as error:
        raise DatabaseAway(f"the database does not answer: {explained(error)}") from error


def database_url(settings: Settings) -> str:
    """Return the database's libpq URL; what is read there afterwards is decrypted.

    Raise NothingRuns when the embedded one does not run.
    """
    url = url_at_hand(settings)
    persons_of(settings, url)
    return url


def persons_at_hand(settings: Settings) -> Persons:
    """Return who is who in that database; raise NothingRuns."""
    return persons_of(settings, url_at_hand(settings))


def url_at_hand(settings: Settings) -> str:
    """Return the same for what reads nothing that is encrypted; raise NothingRuns."""
    from infra.postgres.server import running_url

    if settings.database.url is not None:
        return settings.database.url.get_secret_value()
    url = running_url(cluster_path(settings.server.data_dir))
    if url is None:
        raise NothingRuns(f"nothing runs in {settings.server.data_dir}: start `make up` first")
    return url


def persons_of(settings: Settings, database_url: str) -> Persons:
    """Return the persons of a database, whose keys events are encrypted with from now on."""
    close_persons()
    persons = Persons(database_url, key_encryption(settings))
    MAPPER.ciphers = persons
    return persons


def close_persons() -> None:
    """Close the connections over which keys were asked for; whoever goes on asking opens others."""
    if isinstance(MAPPER.ciphers, Persons):
        MAPPER.ciphers.close()


def key_encryption(settings: Settings) -> KeyEncryption:
    """Return what wraps the keys of persons."""
    return key_encryption_of(settings.keys, settings.server.data_dir)


class Unrecordable(OperatorError):
    """What is asked for can't be recorded as it was said, so it is not done."""


def operator_name() -> str:
    """Return the name that the log has for this machine's operator: `operator:` and the login."""
    try:
        return f"{OPERATOR_PREFIX}{getpass.getuser()}"
    except (OSError, KeyError, ImportError):
        return f"{OPERATOR_PREFIX}uid-{os.getuid()}"


@contextmanager
def recordable() -> Iterator[None]:
    """Raise Unrecordable where the domain refuses an operation, such as for an empty reason."""
    try:
        yield
    except DomainError as error:
        raise Unrecordable(str(error)) from error


@contextmanager
def recorded(
    database_url: str, action: str, subject: str, parameters: Members
) -> Iterator[Recording]:
    """Record a request, run the block, and record its end with the result that the block set.

    Raise Unrecordable, the library's PersistenceError when the store is away, and whatever the
    block raises.
    """
    recorder = open_recorder(database_url)
    with (
        closing(recorder.datastore),
        recordable(),
        recording(recorder, operator_name(), action, subject, parameters) as running,
    ):
        yield running


def signing_secret(settings: Settings) -> str:
    """Return the secret that local tokens are signed with. Raise NoSecret where there is none."""
    if settings.auth.secret is not None:
        return settings.auth.secret.get_secret_value()
    if not settings.auth.local:
        raise NoSecret("tokens come from your identity provider: JWT_SECRET is not set")
    return local_secret(settings)


def local_secret(settings: Settings) -> str:
    """Return the secret that this installation keeps in its data folder; raise NoSecret."""
    folder = settings.server.data_dir
    path = secret_path(folder)
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        raise NoSecret(f"no secret in {folder} yet: start `make up` once") from None
    except OSError as error:
        raise NoSecret(f"the secret {path} cannot be read: {error.strerror}") from error

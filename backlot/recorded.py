"""Has what a command does stand in the log: who, what, when, and what came of it."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

from domain.errors import DomainError
from domain.operation import Members
from infra.errors import OperatorError
from infra.event_store import open_recorder
from infra.operations import Recording, recording


class Unrecordable(OperatorError):
    """What is asked for can't be recorded as it was said, so it is not done."""


def operator_name() -> str:
    """How the log names whoever gives commands on this machine: `operator:` and the login name."""
    try:
        return f"operator:{getpass.getuser()}"
    except (OSError, KeyError, ImportError):
        return f"operator:uid-{os.getuid()}"


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

    Raises Unrecordable, the library's PersistenceError when the store is away, and whatever the
    block raises.
    """
    recorder = open_recorder(database_url)
    with (
        closing(recorder.datastore),
        recordable(),
        recording(recorder, operator_name(), action, subject, parameters) as running,
    ):
        yield running

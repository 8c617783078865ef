"""Who is who: inside of the program a pseudonym stands for each user, outside the user id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from secrets import token_bytes, token_hex
from typing import Protocol

from domain.model import ActorKind, actor_kind

UNKNOWN = "0" * 32
"""Stands for a user whom nobody here knows: whatever is asked about it is empty."""


def new_pseudonym() -> str:
    """Return one that nobody has: 32 random hexadecimal digits."""
    return token_hex(16)


class Pseudonyms(Protocol):
    """Only `recall` never blocks, and never raises.

    A part of the system, or an operator of the command line, has no pseudonym, and is left out of
    answers; who was forgotten has a name that nobody else has.
    """

    def admit(self, user_id: str) -> str:
        """Return the pseudonym of a user, made where there is none; raise Forgotten."""

    def find(self, user_id: str) -> str | None:
        """Return the pseudonym of a user that a call names; None where nobody has that name."""

    def recall(self, pseudonyms: Iterable[str]) -> Mapping[str, str] | None:
        """Return the user ids of so many, if they are at hand; who has none is left out."""

    def names(self, pseudonyms: Iterable[str]) -> Mapping[str, str]:
        """Return the user ids of so many; who has none is left out."""

    def ticket_key(self) -> bytes:
        """Return the 256 bits that every process of the installation seals tickets with."""


class OwnNames:
    """User ids that are their own pseudonyms, in one process."""

    def __init__(self) -> None:
        self._ticket_key = token_bytes(32)

    def admit(self, user_id: str) -> str:
        return user_id

    def find(self, user_id: str) -> str | None:
        return user_id

    def recall(self, pseudonyms: Iterable[str]) -> Mapping[str, str]:
        return {each: each for each in pseudonyms}

    def names(self, pseudonyms: Iterable[str]) -> Mapping[str, str]:
        return self.recall(pseudonyms)

    def ticket_key(self) -> bytes:
        return self._ticket_key


def searched(persons: Pseudonyms, actor: str, *, by_name: bool) -> str:
    """Return as whom the log has an actor that is searched for; UNKNOWN where it has nobody such.

    Users are searched for by user id only where that is allowed, and by pseudonym always.
    """
    if actor_kind(actor) is not ActorKind.USER:
        return actor
    found = persons.find(actor) if by_name else None
    return found or (actor if persons.names((actor,)) else UNKNOWN)

"""Why a command can be refused; the HTTP edge maps each to a status."""

from __future__ import annotations

from typing import Any


class DomainError(Exception):
    """A rule said no. The message says what to do; `state` describes what stands in the way."""

    def __init__(self, message: str, **state: Any) -> None:
        super().__init__(message)
        self.state = state


class NotFound(DomainError):
    """What the command names does not exist, or does no longer."""


class NotAllowed(DomainError):
    """It belongs to somebody else."""


class Conflict(DomainError):
    """Well-formed, but the present state does not admit it."""


class Invalid(DomainError):
    """A value breaks a rule of the domain."""


class Forgotten(DomainError):
    """The actor was forgotten on request, or is being forgotten."""

    TOLD = "This user was forgotten on request: nothing is taken from them."

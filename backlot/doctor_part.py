"""One line of what `backlot doctor` reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

PATIENCE_SECONDS = 5

Kind = Literal["embedded", "external"]


@dataclass(frozen=True, slots=True)
class DoctorPart:
    """One line of the report. ``ok`` is False only for something that an operator has to mend."""

    name: str
    kind: Kind
    url: str | None
    ok: bool
    detail: str

    def as_dict(self) -> dict[str, Any]:
        """The part as ``doctor --json`` prints it."""
        return asdict(self)


def failing(name: str, kind: Kind, url: str | None, wrong: str, remedy: str) -> DoctorPart:
    """A part that an operator has to mend: what is wrong, and what to do about it."""
    return DoctorPart(name, kind, url, False, f"{wrong.rstrip('.')}; {remedy}")

"""What a check of the log found, in the same words for people, programs and the API."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from infra.seals.chain import Seal


class FaultKind(StrEnum):
    """How a log can differ from what was sealed."""

    ALTERED = "altered"
    MISSING = "missing"
    ADDED = "added"
    SEAL_ALTERED = "seal-altered"
    SEAL_MISSING = "seal-missing"
    SIGNATURE_INVALID = "signature-invalid"
    ANCHOR_DIFFERS = "anchor-differs"


@dataclass(frozen=True, slots=True)
class Fault:
    """The first place where the log is not what it was; what is known of it, and in words."""

    kind: FaultKind
    detail: str
    position: int | None = None
    stream_id: UUID | None = None
    version: int | None = None
    seal: int | None = None

    def as_dict(self) -> dict[str, object]:
        found = {
            "kind": self.kind.value,
            "position": self.position,
            "streamId": None if self.stream_id is None else str(self.stream_id),
            "version": self.version,
            "seal": self.seal,
            "detail": self.detail,
        }
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Report:
    """What was checked: positions from `first`, proved up to `sealed_to`; and the first fault.

    `signed` counts seals with a signature, right ones where a public key was given; `anchored`
    those that were compared with an anchor. The `unsealed` events at the end are not proved yet,
    only looked at. Counts include what comes after a fault. `newest` is the last seal.
    """

    first: int
    events: int
    sealed_to: int
    seals: int
    signed: int
    anchored: int
    unsealed: int
    fault: Fault | None
    newest: Seal | None

    @property
    def ok(self) -> bool:
        return self.fault is None

    def as_dict(self) -> dict[str, object]:
        """The report as JSON has it."""
        said: dict[str, object] = {
            "ok": self.ok,
            "from": self.first,
            "events": self.events,
            "sealedTo": self.sealed_to,
            "seals": self.seals,
            "signed": self.signed,
            "anchored": self.anchored,
            "unsealed": self.unsealed,
        }
        return said if self.fault is None else {**said, "fault": self.fault.as_dict()}

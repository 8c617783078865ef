"""What a check of a log against its seals found: the first fault, counts, and caveats."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Literal
from uuid import UUID

from engine.seals.chain import Seal


class FaultKind(StrEnum):
    """How a log can differ from what was sealed."""

    ALTERED = "altered"
    MISSING = "missing"
    ADDED = "added"
    SEAL_ALTERED = "seal-altered"
    SEAL_MISSING = "seal-missing"
    SIGNATURE_INVALID = "signature-invalid"
    ANCHOR_DIFFERS = "anchor-differs"
    TIMESTAMP_INVALID = "timestamp-invalid"
    HEAD_DIFFERS = "head-differs"
    LINK_DIFFERS = "link-differs"


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


CaveatKind = Literal[
    "accepted", "not-compared", "old-format", "rewritten", "unanchored", "unchecked", "unsigned"
]


@dataclass(frozen=True, slots=True)
class Caveat:
    """What a result can't prove: one of a few kinds, and in words."""

    kind: CaveatKind
    detail: str


UNSIGNED = Caveat(
    "unsigned",
    "the newest seal is not signed: whoever can write to the database can change the log and make "
    "seals that fit it (SEAL_KEY_FILE signs)",
)
UNCHECKED = Caveat(
    "unchecked",
    "no public key was given: nobody checked the signatures (SEAL_PUBLIC_KEY_FILE, --public-key)",
)
UNANCHORED = Caveat(
    "unanchored",
    "no seal was compared with an anchor outside the database: a log that was cut off at its end, "
    "or sealed anew with the key, looks like a whole one (SEAL_ANCHOR, --anchors)",
)


def old_format(seals: int) -> Caveat:
    detail = f"{seals} seals have the format of an older release: their `sealedAt` is not hashed"
    return Caveat("old-format", detail)


def rewritten(follows: bytes) -> Caveat:
    detail = (
        f"this log was rewritten from another one, whose last seal has the hash {follows.hex()}: "
        "an export of that log shows what it was (--follows)"
    )
    return Caveat("rewritten", detail)


@dataclass(frozen=True, slots=True)
class Report:
    """What was checked: positions from `first`, proved up to `sealed_to`; and the first fault.

    `signed` counts seals with a signature, right ones where a public key was given; `anchored`
    those that were compared with an anchor, `timestamped` those of them with a time stamp that was
    checked, and `old` those of the former format. The `unsealed` events at the end are not proved
    yet, only looked at. Counts include what comes after a fault. `newest` is the last seal.
    `follows` is the hash of the last seal of the log that this one was rewritten from. `caveats`
    say what the result can't prove.
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
    timestamped: int = 0
    old: int = 0
    follows: bytes | None = None
    caveats: tuple[Caveat, ...] = ()

    @property
    def ok(self) -> bool:
        return self.fault is None

    def as_dict(self) -> dict[str, object]:
        """Return the report as JSON has it."""
        record: dict[str, object] = {
            "ok": self.ok,
            "from": self.first,
            "events": self.events,
            "sealedTo": self.sealed_to,
            "seals": self.seals,
            "signed": self.signed,
            "anchored": self.anchored,
            "timestamped": self.timestamped,
            "unsealed": self.unsealed,
            "caveats": [asdict(caveat) for caveat in self.caveats],
        }
        if self.follows is not None:
            record["follows"] = self.follows.hex()
        return record if self.fault is None else {**record, "fault": self.fault.as_dict()}

    def linked_to(self, former: Report) -> Report:
        """Return the report with a fault unless the log follows the last seal of a former one."""
        newest = former.newest
        if self.fault is not None:
            return self
        if former.fault is not None:
            why = f"the former log is not what was sealed: {former.fault.detail}"
        elif newest is None:
            why = "the former log has no seal that this one could follow"
        elif self.follows != newest.hash:
            why = f"this log does not follow seal {newest.number}, the last one of the former log"
        else:
            return self
        return replace(self, fault=Fault(FaultKind.LINK_DIFFERS, why))

"""What is known of the seals outside the database: anchors, and the head in the data folder.

An anchor is a line of JSON: number, first, last, hash (hexadecimal), sealedAt, signature (base64)
with keyId where the seal is signed, and `timestamp` (base64) where a time-stamp server has signed
its hash (RFC 3161, over the 32 bytes). Lines stand in order of their numbers. A line that also has
`accepted` says that an operator went on from that seal, or from none (number 0), as after a
restore: lines before it with higher numbers no longer count.
"""

from __future__ import annotations

import os
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, Protocol

import orjson

from engine.seals.chain import NO_SEAL, Seal
from engine.seals.places import AnchorsUnusable, LineFile, LockedObjects, LockMode, PlacedLine
from infra.objects.disk import sync_folder
from infra.settings.adapters import ObjectSettings

ACCEPTED = b'"accepted":'
NEWEST_BYTES = 1_000_000
READ_OBJECTS = 100
"""How many of the newest objects a verification reads: each newer seal proves those before it."""


class Acceptance(NamedTuple):
    """Who went on from a seal although later ones were known, when (RFC 3339), and why."""

    by: str
    at: str
    reason: str


class Anchor(NamedTuple):
    """What an anchor says of a seal; number 0 stands for a log without seals."""

    number: int
    first: int
    last: int
    hash: bytes
    token: bytes | None = None
    acceptance: Acceptance | None = None

    @property
    def seal(self) -> tuple[int, int, int, bytes]:
        """The seal that it is about."""
        return self[:4]


class StampedSeals(NamedTuple):
    """Which of the seals from `first` on have an anchor with a time stamp; of others it is not
    known.
    """

    first: int
    numbers: frozenset[int]


class AnchorStore(Protocol):
    """A place for anchors. Its methods raise AnchorsUnusable.

    `name` is what it is called in the settings. Between two calls of `append`, and after a failure,
    `pause_seconds` have to pass. At most `seals_at_once` are appended, the newest: each proves
    those before it.
    """

    name: str
    pause_seconds: float
    seals_at_once: int

    def newest(self) -> Anchor | None:
        """Return the last anchor that was written."""

    def append(self, seals: Iterable[Seal], token: bytes | None = None) -> None:
        """Write down seals that follow the newest anchor; they are safe when this returns.

        `token` is the time stamp of the last one.
        """

    def accept(self, seal: Seal | None, acceptance: Acceptance) -> None:
        """Write down that an operator goes on from this seal."""

    def read(self) -> Iterator[Anchor]:
        """Yield the anchors that count, in order of their numbers."""

    def acceptances(self) -> list[Anchor]:
        """Return the seals from which operators went on, in order of time."""

    def stamped(self) -> StampedSeals:
        """Return which seals were stamped, as far as the newest anchors tell."""


class FileAnchors:
    """Anchors in a file of its own, appended and synced."""

    pause_seconds = 0.0
    seals_at_once = sys.maxsize

    def __init__(self, path: Path, *, required: bool = False) -> None:
        """Where the file is `required`, reading one that is not there is an error."""
        self._file = LineFile(path, required=required)
        self.path, self.name = path, self._file.name

    def newest(self) -> Anchor | None:
        return anchor_in(self._file.last())

    def append(self, seals: Iterable[Seal], token: bytes | None = None) -> None:
        self._file.append(anchor_lines(seals, token))

    def accept(self, seal: Seal | None, acceptance: Acceptance) -> None:
        self._file.append([anchor_line(seal, acceptance=acceptance)])

    def read(self) -> Iterator[Anchor]:
        return counted(list(self._limits()), numbered(self._file.read()))

    def acceptances(self) -> list[Anchor]:
        return [anchor for _, anchor in self._limits()]

    def stamped(self) -> StampedSeals:
        return stamped_of(parse_anchor(*placed) for placed in self._file.newest(NEWEST_BYTES))

    def _limits(self) -> Iterator[tuple[int, Anchor]]:
        for at, (where, line) in enumerate(self._file.read(), start=1):
            if ACCEPTED in line:
                yield at, parse_anchor(line, f"{where},")


def anchor_in(placed: PlacedLine | None) -> Anchor | None:
    """Return the anchor that a line is. Raise AnchorsUnusable for another line."""
    return None if placed is None else parse_anchor(placed.line, placed.where)


def numbered(placed: Iterable[PlacedLine]) -> Iterator[tuple[int, Anchor, str]]:
    """Yield the anchors that lines are, with their numbers from 1 and where they stand."""
    for at, (where, line) in enumerate(placed, start=1):
        yield at, parse_anchor(line, f"{where},"), where


def counted(
    limits: list[tuple[int, Anchor]], anchors: Iterator[tuple[int, Anchor, str]]
) -> Iterator[Anchor]:
    """Yield the anchors that no later acceptance has made void; each comes with its place.

    Raise AnchorsUnusable for one that is out of order.
    """
    before = 0
    for at, anchor, where in anchors:
        while limits and limits[0][0] <= at:
            limits.pop(0)
        if anchor.acceptance or any(anchor.number > limit.number for _, limit in limits):
            continue
        if anchor.number <= before:
            raise AnchorsUnusable(f"{where}: anchor {anchor.number} out of order")
        before = anchor.number
        yield anchor


def stamped_of(anchors: Iterable[Anchor]) -> StampedSeals:
    """Return which seals these anchors say were stamped."""
    found = list(anchors)
    first = min((each.number for each in found), default=0)
    return StampedSeals(first, frozenset(e.number for e in found if e.token is not None))


def anchor_of(seal: Seal | None) -> Anchor:
    """Return what an anchor says of a seal, or of a log that has none."""
    if seal is None:
        return Anchor(0, 1, 0, NO_SEAL)
    return Anchor(seal.number, seal.first, seal.last, seal.hash)


def anchor_lines(seals: Iterable[Seal], token: bytes | None) -> Iterator[bytes]:
    """Yield seals as lines of a file of anchors; the token goes with the last one."""
    before = None
    for seal in seals:
        if before is not None:
            yield anchor_line(before)
        before = seal
    if before is not None:
        yield anchor_line(before, token)


def anchor_line(
    seal: Seal | None, token: bytes | None = None, acceptance: Acceptance | None = None
) -> bytes:
    """Return one line of a file of anchors."""
    if seal is None:
        record: dict[str, object] = _seal_fields(anchor_of(None))
    else:
        record = seal.as_dict()
        for name in ("previous", "leaves", "peaks"):
            record.pop(name, None)
    if token is not None:
        record["timestamp"] = b64encode(token).decode()
    if acceptance is not None:
        record["accepted"] = acceptance._asdict()
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def _seal_fields(anchor: Anchor) -> dict[str, object]:
    number, first, last, seal_hash = anchor.seal
    return {"number": number, "first": first, "last": last, "hash": seal_hash.hex()}


def parse_anchor(line: bytes, where: str) -> Anchor:
    """Return what a line says. Raise AnchorsUnusable, which names the place, for another line."""
    try:
        record = orjson.loads(line)
        number, first, last = (int(record[name]) for name in ("number", "first", "last"))
        token, accepted = record.get("timestamp"), record.get("accepted")
        return Anchor(
            number,
            first,
            last,
            bytes.fromhex(record["hash"]),
            None if token is None else b64decode(token, validate=True),
            None if accepted is None else Acceptance(**accepted),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise AnchorsUnusable(f"{where} is not an anchor: {error!r}") from error


class BucketAnchors:
    """Anchors in a bucket with object lock; each object holds the lines that a file would get."""

    seals_at_once = 10_000

    def __init__(
        self,
        settings: ObjectSettings,
        prefix: str,
        *,
        mode: LockMode,
        retention: timedelta,
        pause_seconds: float,
    ) -> None:
        """`settings` name the bucket. Raise S3Misconfigured where there are no credentials."""
        self._objects = LockedObjects(settings, prefix, mode=mode, retention=retention)
        self.name, self.pause_seconds = self._objects.name, pause_seconds

    def newest(self) -> Anchor | None:
        return anchor_in(self._objects.last())

    def append(self, seals: Iterable[Seal], token: bytes | None = None) -> None:
        self._objects.append(anchor_lines(seals, token))

    def accept(self, seal: Seal | None, acceptance: Acceptance) -> None:
        self._objects.append([anchor_line(seal, acceptance=acceptance)])

    def read(self) -> Iterator[Anchor]:
        """Yield the anchors in the newest 100 objects."""
        found = list(numbered(self._objects.read(READ_OBJECTS)))
        limits = [(at, anchor) for at, anchor, _ in found if anchor.acceptance]
        return counted(limits, iter(found))

    def acceptances(self) -> list[Anchor]:
        found = numbered(self._objects.read(READ_OBJECTS))
        return [anchor for _, anchor, _ in found if anchor.acceptance]

    def stamped(self) -> StampedSeals:
        return stamped_of(anchor for _, anchor, _ in numbered(self._objects.read(READ_OBJECTS)))


@dataclass(frozen=True, slots=True)
class Head:
    """The newest seal, and up to which one seals were written to each place of anchors."""

    seal: Anchor
    anchored: Mapping[str, int] = field(default_factory=dict)


class HeadFile:
    """The head in a file of its own, replaced whole, so that no crash leaves half of one.

    It may lag behind the database by what was sealed just before a crash, never run ahead.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Head | None:
        """Return the head; None before the first one. Raise AnchorsUnusable."""
        try:
            line = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise AnchorsUnusable(f"{self.path} can't be read: {error.strerror}") from error
        seal = parse_anchor(line, str(self.path))
        anchored = orjson.loads(line).get("anchored", {})
        if not isinstance(anchored, dict) or {*map(type, anchored.values())} - {int}:
            raise AnchorsUnusable(f"{self.path}: `anchored` holds something else than numbers")
        return Head(seal, anchored)

    def write(self, head: Head) -> None:
        """Replace the head; it is safe when this returns. Raise AnchorsUnusable."""
        record = {**_seal_fields(head.seal), "anchored": dict(head.anchored)}
        draft = self.path.with_name(f"{self.path.name}.draft")
        try:
            with draft.open("wb") as file:
                draft.chmod(0o600)
                file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
                file.flush()
                os.fsync(file.fileno())
            draft.rename(self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise AnchorsUnusable(f"{self.path} can't be written: {error.strerror}") from error

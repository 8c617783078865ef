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
from datetime import UTC, datetime, timedelta
from hashlib import md5
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, Protocol

import orjson

from engine.seals.chain import NO_SEAL, Seal
from infra.errors import OperatorError
from infra.objects.disk import sync_folder
from infra.settings.adapters import ObjectSettings

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

CHUNK_BYTES = 8 * 1024
ACCEPTED = b'"accepted":'
HIGHEST = 10**12 - 1
READ_OBJECTS = 100
"""How many of the newest objects a verification reads: each newer seal proves those before it."""

LockMode = Literal["compliance", "governance"]


class AnchorsUnusable(OperatorError):
    """The anchors can't be read or written, or what stands there are no anchors."""


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


class FileAnchors:
    """Anchors in a file of its own, appended and synced."""

    pause_seconds = 0.0
    seals_at_once = sys.maxsize

    def __init__(self, path: Path, *, required: bool = False) -> None:
        """Where the file is `required`, reading one that is not there is an error."""
        self.path, self.name = path, f"file:{path}"
        self._required = required

    def newest(self) -> Anchor | None:
        try:
            with self.path.open("rb") as file:
                found = last_line(file)
        except OSError as error:
            if self._may_be_absent(error):
                return None
            raise AnchorsUnusable(f"{self.path} can't be read: {error.strerror}") from error
        return parse_anchor(found[1], str(self.path)) if found else None

    def append(self, seals: Iterable[Seal], token: bytes | None = None) -> None:
        self._write(anchor_lines(seals, token))

    def accept(self, seal: Seal | None, acceptance: Acceptance) -> None:
        self._write([anchor_line(seal, acceptance=acceptance)])

    def read(self) -> Iterator[Anchor]:
        return counted(list(self._limits()), self._anchors())

    def acceptances(self) -> list[Anchor]:
        return [anchor for _, anchor in self._limits()]

    def _write(self, lines: Iterable[bytes]) -> None:
        try:
            self.path.touch(0o600)
            with self.path.open("r+b") as file:
                # What a crash has left torn would spoil the next line.
                cut_torn_line(file)
                file.seek(0, os.SEEK_END)
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise AnchorsUnusable(f"{self.path} can't be written: {error.strerror}") from error

    def _may_be_absent(self, error: OSError) -> bool:
        return isinstance(error, FileNotFoundError) and not self._required

    def _limits(self) -> Iterator[tuple[int, Anchor]]:
        for at, line in self._lines():
            if ACCEPTED in line:
                yield at, parse_anchor(line, f"{self.path}, line {at},")

    def _anchors(self) -> Iterator[tuple[int, Anchor, str]]:
        for at, line in self._lines():
            where = f"{self.path}, line {at}"
            yield at, parse_anchor(line, f"{where},"), where

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the lines that stand there now, with their numbers."""
        try:
            size = self.path.stat().st_size
        except OSError as error:
            if self._may_be_absent(error):
                return
            raise AnchorsUnusable(f"{self.path} can't be read: {error.strerror}") from error
        with self.path.open("rb") as file:
            for at, line in enumerate(file, start=1):
                size -= len(line)
                # The last line may be torn by a crash, or just being written.
                if size < 0 or not line.endswith(b"\n"):
                    return
                yield at, line


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


def last_line(file: BinaryIO) -> tuple[int, bytes] | None:
    """Return where the last whole line begins, and the line."""
    size, wanted = file.seek(0, os.SEEK_END), CHUNK_BYTES
    while True:
        start = max(0, size - wanted)
        file.seek(start)
        tail = file.read(size - start)
        end = tail.rfind(b"\n") + 1
        begin = tail.rfind(b"\n", 0, max(0, end - 1)) + 1
        if start == 0 or begin > 0:
            break
        wanted *= 2
    return (start + begin, tail[begin:end]) if end else None


def cut_torn_line(file: BinaryIO) -> tuple[int, bytes] | None:
    """Cut off what stands behind the last whole line; return that as `last_line` does."""
    found = last_line(file)
    file.truncate(found[0] + len(found[1]) if found else 0)
    return found


class BucketAnchors:
    """Anchors under a prefix of a bucket of S3 with object lock: nobody changes them for a time.

    Each object holds the lines that a file would get at once. Objects
    are numbered, and their keys count down, so that the newest is listed first. Whoever may write
    to the bucket can put a newer version or a marker of deletion over an object; so the oldest
    version of each is what counts.
    """

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
        # Its libraries are slow to import, and not needed where anchors lie in files.
        from infra.objects.s3 import S3Session

        session = S3Session(settings)
        self._client: S3Client = session.client(settings.endpoint_url, read=10, attempts=2)
        self._bucket, self._prefix = session.bucket, prefix
        self._mode, self._retention = mode.upper(), retention
        self.name, self.pause_seconds = f"s3://{self._bucket}/{prefix}", pause_seconds
        self._number: int | None = None

    def newest(self) -> Anchor | None:
        found = next(self._objects(), None)
        self._number = found[0] if found else 0
        if found is None:
            return None
        line = self._content(*found).splitlines()[-1:]
        return parse_anchor(line[0] if line else b"", f"{self.name}, object {found[0]},")

    def append(self, seals: Iterable[Seal], token: bytes | None = None) -> None:
        self._write(anchor_lines(seals, token))

    def accept(self, seal: Seal | None, acceptance: Acceptance) -> None:
        self._write([anchor_line(seal, acceptance=acceptance)])

    def read(self) -> Iterator[Anchor]:
        """Yield the anchors in the newest 100 objects."""
        found = list(self._anchors())
        limits = [(at, anchor) for at, anchor, _ in found if anchor.acceptance]
        return counted(limits, iter(found))

    def acceptances(self) -> list[Anchor]:
        return [anchor for _, anchor, _ in self._anchors() if anchor.acceptance]

    def _write(self, lines: Iterable[bytes]) -> None:
        content = b"".join(lines)
        if self._number is None:
            self.newest()
        number = (self._number or 0) + 1
        self._call(
            "put_object",
            Key=self._key(number),
            Body=content,
            # Object lock demands a checksum, and this one every store takes.
            ContentMD5=b64encode(md5(content, usedforsecurity=False).digest()).decode(),
            ContentType="application/jsonl",
            ObjectLockMode=self._mode,
            ObjectLockRetainUntilDate=datetime.now(UTC) + self._retention,
        )
        self._number = number

    def _anchors(self) -> Iterator[tuple[int, Anchor, str]]:
        """Yield the lines of the newest objects, oldest first, with their places."""
        newest = [found for found, _ in zip(self._objects(), range(READ_OBJECTS), strict=False)]
        at = 0
        for number, version in reversed(newest):
            for line in self._content(number, version).splitlines():
                where = f"{self.name}, object {number}"
                at += 1
                yield at, parse_anchor(line, f"{where},"), where

    def _objects(self) -> Iterator[tuple[int, str]]:
        """Yield number and oldest version of each object, the newest first."""
        for key, versions in groupby(self._versions(), key=lambda version: version["Key"]):
            yield self._number_of(key), [version["VersionId"] for version in versions][-1]

    def _versions(self) -> Iterator[Any]:
        place: dict[str, Any] = {}
        while True:
            page = self._call("list_object_versions", Prefix=f"{self._prefix}/", **place)
            yield from page.get("Versions", [])
            if not page.get("IsTruncated"):
                return
            place = {"KeyMarker": page["NextKeyMarker"]}
            if "NextVersionIdMarker" in page:
                place["VersionIdMarker"] = page["NextVersionIdMarker"]

    def _content(self, number: int, version: str) -> bytes:
        found = self._call("get_object", Key=self._key(number), VersionId=version)
        content: bytes = found["Body"].read()
        return content

    def _call(self, operation: str, **parameters: Any) -> Any:
        from infra.objects.s3 import S3Error, unavailable

        try:
            return getattr(self._client, operation)(Bucket=self._bucket, **parameters)
        except S3Error as error:
            told = unavailable(error, self._bucket, self._client.meta.endpoint_url)
            raise AnchorsUnusable(told.cause) from error

    def _key(self, number: int) -> str:
        return f"{self._prefix}/{HIGHEST - number:012}.jsonl"

    def _number_of(self, key: str) -> int:
        name = key.removeprefix(f"{self._prefix}/").removesuffix(".jsonl")
        if not (name.isdecimal() and key == self._key(HIGHEST - int(name))):
            raise AnchorsUnusable(f"{self.name} holds {key!r}, which is no object of anchors")
        return HIGHEST - int(name)


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

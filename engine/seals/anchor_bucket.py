"""Anchors in a bucket of S3 whose objects nobody can change or remove for a time (object lock).

Each object holds the lines that a file would get at once. Objects are numbered, and their keys
count down, so that the newest is listed first. Whoever may write to the bucket can put a newer
version or a marker of deletion over an object; so the oldest version of each is what counts.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from hashlib import md5
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from engine.seals.anchors import (
    Acceptance,
    Anchor,
    AnchorsUnusable,
    anchor_line,
    anchor_lines,
    counted,
    parse_anchor,
)
from engine.seals.chain import Seal
from infra.objects.s3 import S3Error, S3Session, unavailable
from infra.settings.adapters import ObjectSettings

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

HIGHEST = 10**12 - 1
READ_OBJECTS = 100
"""How many of the newest objects a verification reads: each newer seal proves those before it."""

LockMode = Literal["compliance", "governance"]


class BucketAnchors:
    """Anchors under a prefix of a bucket that has object lock."""

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

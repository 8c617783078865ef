"""Places outside the database that keep lines: a file of their own, or objects of a bucket."""

from __future__ import annotations

import fcntl
import os
from base64 import b64encode
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from hashlib import md5
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, Protocol

from infra.errors import OperatorError
from infra.settings.adapters import ObjectSettings

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

CHUNK_BYTES = 8 * 1024
HIGHEST = 10**12 - 1
READERS = 8
"""So many objects are read at once: a connection for each stays open."""

LockMode = Literal["compliance", "governance"]


class AnchorsUnusable(OperatorError):
    """What lies outside the database can't be read or written, or is not what belongs there."""


class PlacedLine(NamedTuple):
    """A line, and in words where it stands."""

    where: str
    line: bytes


class LinePlace(Protocol):
    """A place for lines, which only grows. Its methods raise AnchorsUnusable."""

    name: str

    def append(self, lines: Iterable[bytes]) -> None:
        """Add lines; they are safe when this returns."""

    def last(self) -> PlacedLine | None:
        """Return the last whole line."""

    def read(self) -> Iterator[PlacedLine]:
        """Yield the lines that stand there now, the oldest first."""

    def held(self) -> AbstractContextManager[None]:
        """Keep others from appending, as far as the place can."""


class LineFile:
    """Lines in a file of its own, appended and synced."""

    def __init__(self, path: Path, *, required: bool = False) -> None:
        """Where the file is `required`, reading one that is not there is an error."""
        self.path, self.name = path, f"file:{path}"
        self._required = required

    def append(self, lines: Iterable[bytes]) -> None:
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

    def last(self) -> PlacedLine | None:
        try:
            with self.path.open("rb") as file:
                found = last_line(file)
        except OSError as error:
            if self._may_be_absent(error):
                return None
            raise AnchorsUnusable(f"{self.path} can't be read: {error.strerror}") from error
        return PlacedLine(str(self.path), found[1]) if found else None

    def read(self) -> Iterator[PlacedLine]:
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
                yield PlacedLine(f"{self.path}, line {at}", line)

    def newest(self, most_bytes: int) -> list[tuple[bytes, str]]:
        """Return the last whole lines, so many bytes at most, each with where it stands."""
        try:
            with self.path.open("rb") as file:
                start = max(0, file.seek(0, os.SEEK_END) - most_bytes)
                file.seek(start)
                lines = file.read(most_bytes).splitlines(keepends=True)
        except OSError as error:
            if self._may_be_absent(error):
                return []
            raise AnchorsUnusable(f"{self.path} can't be read: {error.strerror}") from error
        whole = lines[1:] if start else lines
        return [(line, str(self.path)) for line in whole if line.endswith(b"\n")]

    @contextmanager
    def held(self) -> Iterator[None]:
        try:
            self.path.touch(0o600)
            file = self.path.open("rb")
        except OSError as error:
            raise AnchorsUnusable(f"{self.path} can't be written: {error.strerror}") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _may_be_absent(self, error: OSError) -> bool:
        return isinstance(error, FileNotFoundError) and not self._required


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


class LockedObjects:
    """Lines under a prefix of a bucket of S3 with object lock: nobody changes them for a time.

    Each object holds the lines that were appended at once. Objects are numbered, and their keys
    count down, so that the newest is listed first. Whoever may write to the bucket can put a newer
    version or a marker of deletion over an object; so the oldest version of each is what counts.
    Of two writers at once, the later one's lines do not count.
    """

    def __init__(
        self,
        settings: ObjectSettings,
        prefix: str,
        *,
        mode: LockMode,
        retention: timedelta,
        keeps: bool = False,
    ) -> None:
        """`settings` name the bucket; what `keeps` all that it has read, reads no object twice.

        Raise S3Misconfigured where there are no credentials.
        """
        # Its libraries are slow to import, and not needed where lines lie in files.
        from infra.objects.s3 import S3Session

        session = S3Session(settings)
        self._client: S3Client = session.client(settings.endpoint_url, read=10, attempts=2)
        self._bucket, self._prefix = session.bucket, prefix
        self._mode, self._retention = mode.upper(), retention
        self.name = f"s3://{self._bucket}/{prefix}"
        self._number: int | None = None
        self._kept: dict[int, bytes] | None = {} if keeps else None

    def append(self, lines: Iterable[bytes]) -> None:
        content = b"".join(lines)
        if self._number is None:
            self.last()
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

    def last(self) -> PlacedLine | None:
        found = next(self._objects(), None)
        self._number = found[0] if found else 0
        if found is None:
            return None
        line = self._content(*found).splitlines()[-1:]
        return PlacedLine(self._where(found[0]), line[0] if line else b"")

    def read(self, newest: int | None = None) -> Iterator[PlacedLine]:
        """Yield the lines of so many of the newest objects; without a number, of all."""
        objects = list(islice(self._objects(), newest))
        self._number = objects[0][0] if objects else 0
        numbers = [number for number, _ in reversed(objects)]
        with ThreadPoolExecutor(READERS) as readers:
            contents = readers.map(lambda found: self._content(*found), reversed(objects))
            for number, content in zip(numbers, contents, strict=True):
                for line in content.splitlines():
                    yield PlacedLine(self._where(number), line)

    def held(self) -> AbstractContextManager[None]:
        """Nobody is kept from appending; who wants to know reads what came of it."""
        return nullcontext()

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
        if self._kept is not None and number in self._kept:
            return self._kept[number]
        found = self._call("get_object", Key=self._key(number), VersionId=version)
        content: bytes = found["Body"].read()
        if self._kept is not None:
            self._kept[number] = content
        return content

    def _call(self, operation: str, **parameters: Any) -> Any:
        from infra.objects.s3 import S3Error, unavailable

        try:
            return getattr(self._client, operation)(Bucket=self._bucket, **parameters)
        except S3Error as error:
            told = unavailable(error, self._bucket, self._client.meta.endpoint_url)
            raise AnchorsUnusable(told.cause) from error

    def _where(self, number: int) -> str:
        return f"{self.name}, object {number}"

    def _key(self, number: int) -> str:
        return f"{self._prefix}/{HIGHEST - number:012}.jsonl"

    def _number_of(self, key: str) -> int:
        name = key.removeprefix(f"{self._prefix}/").removesuffix(".jsonl")
        if not (name.isdecimal() and key == self._key(HIGHEST - int(name))):
            raise AnchorsUnusable(f"{self.name} holds {key!r}, which is no object of anchors")
        return HIGHEST - int(name)

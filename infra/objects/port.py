"""The port of object stores, with its keys, ETags and checksums: all that commands know of one."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from domain.media_type import PLAYED_BY_BROWSERS, film_type
from domain.text import shows, without_misleading
from infra.metrics import counter
from infra.settings.features import MAX_PARTS

if TYPE_CHECKING:
    from infra.objects.fragments import PartWriter

KEY = re.compile(r"videos/[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PART_ETAG = re.compile(r"[0-9a-f]{32}")
# S3 promises no more of an ETag: with a key of KMS, for one, it is no MD5.
OPAQUE_ETAG = re.compile(r"[!#-~]{1,128}")
BYTES = "application/octet-stream"
MOST_LISTED = 20

CONTENT_MD5 = "content-md5"
S3_PREFIX = "x-amz-checksum-"

OBJECT_STORE_FAILURES = counter(
    "backlot_object_store_failures",
    "Times that the object store could not do what was asked (disk, network).",
)


def now() -> datetime:
    """Return the clock of the stores, in UTC."""
    return datetime.now(UTC)


class ObjectStoreError(Exception):
    """What the object store can refuse; the text is fit for a client."""


class InvalidKey(ObjectStoreError):
    """A key, upload id, part number or size that no store may act on."""


class NoSuchUpload(ObjectStoreError):
    """Never begun, aborted, or already completed: then `head` gives the object."""

    def __init__(self) -> None:
        super().__init__("There is no such upload under way; start a new one.")


class PartMismatch(ObjectStoreError):
    """The parts named for completion are not the parts that arrived."""

    def __init__(self, missing: Sequence[int] = (), wrong: Sequence[int] = ()) -> None:
        self.missing, self.wrong = tuple(missing), tuple(wrong)
        told = [
            f"{what}: {_some(numbers)}."
            for what, numbers in (("Missing parts", missing), ("Parts named wrongly", wrong))
            if numbers
        ]
        super().__init__(" ".join(told) or "No parts were named.")


def _some(numbers: Sequence[int]) -> str:
    listed, more = ", ".join(map(str, numbers[:MOST_LISTED])), len(numbers) - MOST_LISTED
    return f"{listed} and {more} more" if more > 0 else listed


class ObjectStoreUnavailable(ObjectStoreError):
    """The store can't serve now. `cause` is for the operator and may name folders and hosts."""

    def __init__(self, cause: str) -> None:
        super().__init__("The object store is unavailable; try again later.")
        self.cause = cause


class SignedUrl(NamedTuple):
    """A URL that carries its own permission until `expires_at`."""

    url: str
    expires_at: datetime


class PartRef(NamedTuple):
    """A part as a client names it: number from 1, ETag with or without its quotes."""

    number: int
    etag: str


class Part(NamedTuple):
    """A part that has arrived: number from 1, unquoted ETag, size in bytes."""

    number: int
    etag: str
    size: int


class OpenUpload(NamedTuple):
    """An upload under way, by the names that the store has for it."""

    key: str
    store_upload_id: str


class StoredObject(NamedTuple):
    """A completed object: size in bytes, unquoted multipart ETag."""

    key: str
    size: int
    etag: str


class ObjectStore(Protocol):
    """Multipart uploads under keys `videos/<uuid>`, one completion per key.

    Any method may raise ObjectStoreUnavailable, and InvalidKey for a key of another form.
    """

    @property
    def writer(self) -> PartWriter:
        """What takes the parts whose bytes come to this program and not to the store."""

    async def begin(self, key: str) -> str:
        """Open an upload and return the id by which the store knows it."""

    def part_url(
        self, key: str, store_upload_id: str, number: int, size: int, base_url: str
    ) -> SignedUrl:
        """Return where to PUT part `number` (1 to 10,000) of exactly `size` bytes."""

    async def list_parts(self, key: str, store_upload_id: str) -> list[Part]:
        """Return the parts that arrived, by number. Raise NoSuchUpload."""

    async def last_arrival(self, key: str, store_upload_id: str) -> datetime | None:
        """Return when the latest part arrived (UTC), None when none has. Raise NoSuchUpload."""

    async def list_uploads(self, older_than: datetime) -> list[OpenUpload]:
        """Return the uploads under way that were begun before this time, as far as the store tells.

        Those that changed since may be left out, and keys of another form are.
        """

    async def complete(
        self, key: str, store_upload_id: str, parts: Sequence[PartRef]
    ) -> StoredObject:
        """Join the named parts, in order of number, into the object; again: the same answer.

        Raise PartMismatch when parts are missing, double or of another ETag, NoSuchUpload when
        neither the upload nor the object is there.
        """

    async def abort(self, key: str, store_upload_id: str) -> None:
        """Drop the upload and its parts, if there are any; a completed object stays."""

    async def head(self, key: str) -> StoredObject | None:
        """Return the completed object, or None."""

    async def delete(self, key: str) -> None:
        """Drop the completed object, if there is one."""

    def get_url(self, key: str, content_type: str, filename: str, base_url: str) -> SignedUrl:
        """Return where to GET the object, which is then served with this type and file name."""

    async def check(self) -> None:
        """Raise ObjectStoreUnavailable unless the store would take an upload now."""


def check_key(key: str) -> str:
    """Return the key itself; raise InvalidKey unless it reads `videos/<uuid>` in lower case."""
    if not KEY.fullmatch(key):
        raise InvalidKey("An object's key has to be videos/<uuid>.")
    return key


def check_part(number: int, size: int) -> None:
    """Raise InvalidKey for what can't be a part."""
    if not 1 <= number <= MAX_PARTS or size < 0:
        raise InvalidKey(f"A part has a number from 1 to {MAX_PARTS} and at least 0 bytes.")


def ordered_refs(parts: Sequence[PartRef], etags: re.Pattern[str] = PART_ETAG) -> list[PartRef]:
    """Return the parts by number, ETags bare; raise PartMismatch for none, doubles, no-ETags."""
    plain = (PartRef(part.number, bare_etag(part.etag)) for part in parts)
    refs = sorted(plain, key=lambda ref: ref.number)
    doubles = {one.number for one, next_one in pairwise(refs) if one.number == next_one.number}
    wrong = [ref.number for ref in refs if not etags.fullmatch(ref.etag)]
    if not refs or doubles or wrong:
        raise PartMismatch(wrong=sorted(doubles.union(wrong)))
    return refs


def bare_etag(etag: str) -> str:
    """Without quotes; an MD5 in lower case, anything else as it stands."""
    plain = etag.strip('"')
    return plain.lower() if PART_ETAG.fullmatch(plain.lower()) else plain


def multipart_etag(refs: Sequence[PartRef]) -> str:
    """Return the ETag as S3 computes it: MD5 of the parts' MD5s, a dash, the number of parts."""
    digests = b"".join(bytes.fromhex(ref.etag) for ref in refs)
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(refs)}"


def safe_content_type(content_type: str) -> str:
    """Return the film's type without parameters, else `application/octet-stream`."""
    return film_type(content_type) or BYTES


def disposition(content_type: str) -> Literal["inline", "attachment"]:
    """Return whether a browser may show the object (RFC 6266): only what a browser can play."""
    return "inline" if film_type(content_type) in PLAYED_BY_BROWSERS else "attachment"


def safe_filename(filename: str) -> str:
    """Return the last component without misleading characters, 150 at most, or else `video`."""
    last = re.split(r"[/\\]", filename)[-1]
    harmless = without_misleading(last).strip(". ")[-150:]
    return harmless if shows(harmless) else "video"


class ChecksumUnreadable(ObjectStoreError):
    """The header's value is no checksum of its kind."""


class ChecksumUnsupported(ObjectStoreError):
    """A checksum of a kind that can't be computed here; to ignore it would be no check."""


class Hash(Protocol):
    """What hashlib's objects and CRC-32 have in common."""

    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class Crc32:
    """The CRC-32 of zlib as S3 writes it: four bytes, the highest first."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


# MD5 and SHA-1 protect from accidents, and not from attackers.
ALGORITHMS: Mapping[str, Callable[[], Hash]] = MappingProxyType(
    {
        CONTENT_MD5: partial(hashlib.md5, usedforsecurity=False),
        f"{S3_PREFIX}crc32": Crc32,
        f"{S3_PREFIX}sha1": partial(hashlib.sha1, usedforsecurity=False),
        f"{S3_PREFIX}sha256": hashlib.sha256,
    }
)
"""By the name of the header. S3 knows more; those need a library beside Python's own."""


class Checksum(NamedTuple):
    """What a header says that the bytes of the part add up to."""

    header: str
    digest: bytes


def read_checksums(headers: Iterable[tuple[str, str]]) -> list[Checksum]:
    """Return the checksums among these headers, whose names are in lower case.

    Raise ChecksumUnsupported for another `x-amz-checksum-*`, ChecksumUnreadable for a value
    that is not the base64 of as many bytes as the checksum has.
    """
    return [
        _read(name, value)
        for name, value in headers
        if name == CONTENT_MD5 or name.startswith(S3_PREFIX)
    ]


def _read(header: str, value: str) -> Checksum:
    if header not in ALGORITHMS:
        told = f"{header} is not supported; send one of {', '.join(ALGORITHMS)}, or none."
        raise ChecksumUnsupported(told)
    expected = len(ALGORITHMS[header]().digest())
    try:
        digest = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != expected:
        raise ChecksumUnreadable(f"{header} has to be the base64 of {expected} bytes.")
    return Checksum(header, digest)

"""The checksums that a part may be sent with: how they are called, read and computed."""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from infra.objects.port import ObjectStoreError

CONTENT_MD5 = "content-md5"
S3_PREFIX = "x-amz-checksum-"


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


def md5() -> Hash:
    """For ETags and Content-MD5, which protect from accidents and not from attackers."""
    return hashlib.md5(usedforsecurity=False)


ALGORITHMS: Mapping[str, Callable[[], Hash]] = MappingProxyType(
    {
        CONTENT_MD5: md5,
        f"{S3_PREFIX}crc32": Crc32,
        f"{S3_PREFIX}sha1": lambda: hashlib.sha1(usedforsecurity=False),
        f"{S3_PREFIX}sha256": hashlib.sha256,
    }
)
"""By the name of the header. S3 knows more; those need a library beside Python's own."""


@dataclass(frozen=True, slots=True)
class Checksum:
    """What a header says that the bytes of the part add up to."""

    header: str
    digest: bytes


def read_checksums(headers: Iterable[tuple[str, str]]) -> list[Checksum]:
    """The checksums among these headers, whose names are in lower case.

    Raises ChecksumUnsupported for another `x-amz-checksum-*`, ChecksumUnreadable for a value
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
